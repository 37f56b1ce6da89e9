"""Optimizers: from a config to an optax transformation, and where its states live."""
