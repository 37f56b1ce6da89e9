"""Scheduling on the host: plain Python over ints, no jax."""
