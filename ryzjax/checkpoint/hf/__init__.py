"""Hugging Face's config.json and directories: `config` reads the former, `save` writes a whole model.

`keys` refuses fields that may change the maths and that nothing reads. What a family spells in its own way belongs to
`families`.
"""
