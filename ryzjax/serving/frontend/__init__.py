"""The callers' side of the engine: `AsyncEngine`, `LLM`, and the way from prompts to requests and from tokens to text.

`protocol.EngineFrontend` is what a server needs of an engine. HTTP, and any other protocol, talks to it alone.
"""
