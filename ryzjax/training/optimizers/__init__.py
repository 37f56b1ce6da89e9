"""Optimizers: optax transformations made from an `OptimizerConfig`, and the shardings of their states.

Code here sees parameters only by name and shape. It knows nothing of models or the loop.
"""
