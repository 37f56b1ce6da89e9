"""Attention: over a paged KV cache when serving, within packed segments when training."""
