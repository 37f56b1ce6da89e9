"""The messages between a caller and the engine, and their settings: requests, outputs, sampling parameters.

Nothing here imports jax or the rest of `serving`.
"""
