"""Quantized checkpoints: every format as a `StoredMatrix`, which becomes the leaves of a QArray, or floats."""
