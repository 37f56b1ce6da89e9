"""Benchmarks: a load generator for a server over HTTP, and measurements of an engine in this process."""
