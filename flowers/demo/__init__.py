"""A page to play with: a photo in, names and the pixels that mattered out."""
