"""Engines: what runs a trained network fast on this machine, from uint8 batches to probabilities."""
