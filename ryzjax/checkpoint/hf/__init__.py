"""Hugging Face's `config.json` and directories, read and written."""
