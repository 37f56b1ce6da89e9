"""GGUF files: `file` reads tensors and metadata, `config` maps metadata to config.json, `names` maps tensor names.

`ryzjax.gguf_header` parses the files, and the `gguf` package dequantizes them. How a quantized tensor stays quantized
in memory belongs to `checkpoint.quantized.gguf`, and a GGUF file's tokenizer to `data`.
"""
