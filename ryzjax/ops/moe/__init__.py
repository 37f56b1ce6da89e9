"""Mixture of experts: routing, and products of rows in groups."""
