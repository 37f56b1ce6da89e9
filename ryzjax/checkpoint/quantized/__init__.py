"""Quantized checkpoints: how each format stores a matrix, and how the stored matrix becomes a QArray or floats.

`method` reads the config and says which tensors make up a matrix. There is one file per format (`gptq`, `awq`,
`bitsandbytes`, `compressed_tensors`, `gguf`), each with a subclass of `StoredMatrix`. `quantized_weight` turns a
`StoredMatrix` into what the loader reads. `encoded_matrix` and `config` write what RyzJAX quantizes. Choosing the bits
of a weight belongs to `quant`, not here.
"""
