"""Quantization of models: algorithms on matrices, and the driver that takes a model through them block by block."""
