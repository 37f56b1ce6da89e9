"""What a run starts from: base weights, float32 masters, adapters, a new model."""
