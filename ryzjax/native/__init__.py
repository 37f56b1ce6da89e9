"""CPU kernels in C++, called by XLA; optional at run time."""
