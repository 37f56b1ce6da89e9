"""Adapters as PEFT stores them."""
