"""Quantization algorithms for single matrices: rounding to nearest, HQQ, GPTQ, AWQ and NF4.

`recipe` and `scheme` say what to quantize to. `grid` and `nf4` round to nearest, and the other methods build on them.
`encode_matrix` quantizes a matrix by a method, for a checkpoint; `quantize_matrix` quantizes it to a format, while
loading. `quantized_rows` does that by the native kernel, some rows at a time. Nothing here knows about models, files or
calibration text: see `quantizing` and `checkpoint`.
"""
