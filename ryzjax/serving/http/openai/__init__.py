"""The OpenAI API: its requests, its answers and its routes.

Everything here knows how OpenAI spells fields and JSON. Another HTTP API gets a folder of its own beside this one; both
use `Generation`, `EventStream`, `AnswerFormat` and `ServerContext` from the folder above, and never each other.
"""
