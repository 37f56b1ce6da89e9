"""PEFT directories: LoRA adapters as `adapter_config.json` and `adapter_model.safetensors`.

`read` and `write` hold the two entry points, `read_adapter` and `write_adapter`. `config` parses and writes the JSON.
`modules` maps PEFT's module paths to our linear layers. This folder may hold only what PEFT's files say and how they
say it; the adapters themselves, their initialization and their maths belong to `lora`.
"""
