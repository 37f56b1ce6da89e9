"""Estimates the length of a text without a tokenizer, by counting the pieces whose borders no token crosses."""

from __future__ import annotations

import re

__all__ = ["PIECE_PATTERN", "count_pieces"]

PIECE_PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n|\s"
"""How the tokenizer splits text: single digits, words with the space before them, runs of punctuation, and single white
space characters. No token crosses the border of a piece, so a text has at least as many tokens as pieces."""

# Python's `re` does not support \p{L}. These are the same classes.
_PIECES = re.compile(r" ?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+|\s")


def count_pieces(text: str) -> int:
    """Returns the number of pieces of a text: at most its tokens, and close to them if the vocabulary has its words."""
    return len(_PIECES.findall(text))
