"""Data sets: images as raw bytes, labels as names, and the files they come in."""
