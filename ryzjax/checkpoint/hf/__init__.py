"""Hugging Face's config.json and directories: `config` reads the former, `save` writes a whole model.

`fields` and `keys` check the fields of a config, and `rope` reads its rotary embeddings. What only one family spells in
its own way belongs to `families`.
"""
