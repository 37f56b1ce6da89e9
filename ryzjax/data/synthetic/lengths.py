"""How long a text is, about, without a tokenizer: the pieces that no token crosses."""

from __future__ import annotations

import re

__all__ = ["PIECE_PATTERN", "count_pieces"]

PIECE_PATTERN = r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+|\n|\s"
"""What the tokenizer splits text by: a digit alone, a word with the space before it, a run of punctuation, white space
one by one. No token crosses such a piece, so a text has at least as many tokens."""

# Python's own `re` knows no \p{L}: these are the same classes.
_PIECES = re.compile(r" ?[^\W\d_]+|\d| ?(?:[^\s\w]|_)+|\s")


def count_pieces(text: str) -> int:
    """Pieces of a text: nearly its tokens where the vocabulary knows its words, and never more."""
    return len(_PIECES.findall(text))
