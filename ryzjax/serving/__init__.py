"""Serving: requests, the engine, and the ways to reach it."""
