"""What is known of each image format before a decoder is let loose on a file.

Each module walks its format's own structure, bounds what a file may ask for, and gives the decoder a file without the
parts that it has no use for.
"""
