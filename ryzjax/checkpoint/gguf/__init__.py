"""GGUF files: their tensors, metadata and llama.cpp's names."""
