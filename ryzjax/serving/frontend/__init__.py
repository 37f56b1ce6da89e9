"""What callers use: the asynchronous engine, `LLM`, and the text that tokens become."""
