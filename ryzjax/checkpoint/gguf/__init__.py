"""GGUF files: `file` reads tensors and metadata, `config` maps metadata to config.json, `names` maps tensor names.

The `gguf` package parses and dequantizes the files. How a quantized tensor stays quantized in memory belongs to
`checkpoint.quantized.gguf`, and a GGUF file's tokenizer to `data`.
"""
