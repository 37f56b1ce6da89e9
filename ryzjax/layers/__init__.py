"""RoPE, attention, MLP and linear layers shared by the model families."""
