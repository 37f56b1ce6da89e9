"""The model families, one file each, built from shared layers."""
