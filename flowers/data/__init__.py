"""Photos on disk to uint8 batches: scan, decode, augment, order."""
