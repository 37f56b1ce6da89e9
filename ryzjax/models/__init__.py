"""The model families, one file each, built from shared layers.

Tests compare the logits of each family with those of transformers on tiny models with random weights. Published configs
are checked by their parameter counts.
"""
