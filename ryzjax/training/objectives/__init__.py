"""Objectives: the losses that training minimizes, one file each, over cross-entropy in chunks.

An objective is a pure function of a model's parameters and a batch. It knows nothing of optimizers or the loop.
"""
