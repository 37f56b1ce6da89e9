"""CPU kernels in C++, called by XLA, or directly while loading; optional at run time."""
