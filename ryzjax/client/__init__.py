"""Clients of a running server. They talk HTTP and import nothing that needs JAX."""
