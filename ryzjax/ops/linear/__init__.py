"""Products of activations with weight matrices, plain or quantized."""
