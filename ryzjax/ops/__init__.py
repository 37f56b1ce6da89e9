"""One module an op: contract, pure-JAX reference, and the choice of implementation."""
