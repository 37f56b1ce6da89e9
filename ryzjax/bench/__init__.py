"""Benchmarks: a load generator for a server over HTTP, and measurements of an engine and of the machine itself."""
