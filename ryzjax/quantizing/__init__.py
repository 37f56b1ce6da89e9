"""Quantizes a whole model: calibration text, one block after another, the files, the reports; and merges adapters.

`quantize` is the entry point. `quantize_block` and `quantize_group` hold its two inner loops. `sensitivity` chooses
which layers get 8 bits, `kv_scales` calibrates an fp8 KV cache, and `merge` adds an adapter to a checkpoint. Methods
for a single matrix belong to `quant`, file formats to `checkpoint`, and measuring the result to `evaluation`.
"""
