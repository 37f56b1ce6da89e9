"""TokenTexts: the text of single tokens, for answers with log-probabilities."""

from __future__ import annotations

from functools import lru_cache

from ryzjax.serving.frontend.protocol import ChatTokenizer

__all__ = ["TokenTexts"]

_CACHED_TOKENS = 65_536


class TokenTexts:
    """The texts of single tokens, special tokens included, in a cache. Each token may come with twenty alternatives.

    The text of a token is the text it has after another token. Decoded alone, a SentencePiece token loses the space
    that its word begins with: the texts would not add up to the completion, and " to" would look like "to".

    Args:
      tokenizer: The tokenizer of the model.
    """

    def __init__(self, tokenizer: ChatTokenizer):
        before = tokenizer.encode("a", add_special_tokens=False)[-1:]

        def decode(token_id: int, skip_special_tokens: bool, is_first: bool) -> str:
            context = [] if is_first else before
            text = tokenizer.decode([*context, token_id], skip_special_tokens=skip_special_tokens)
            return text[len(tokenizer.decode(context, skip_special_tokens=False)) :]

        self._decode = lru_cache(_CACHED_TOKENS)(decode)

    def __getitem__(self, token_id: int) -> str:
        return self._decode(token_id, False, False)

    def at_start(self, token_id: int) -> str:
        """Returns the text of a token at the start of a text."""
        return self._decode(token_id, False, True)

    def width(self, token_id: int, *, skip_special_tokens: bool, is_first: bool = False) -> int:
        """Returns the length of a token's text in characters; 0 for a special token that the text omits."""
        return len(self._decode(token_id, skip_special_tokens, is_first))
