"""The commands of `ryzjax`. Each one is a thin layer over the library."""
