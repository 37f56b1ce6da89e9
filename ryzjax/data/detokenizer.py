"""Decodes a growing list of tokens. A push costs only its own tokens, and no partial character is shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Decoder", "IncrementalDetokenizer"]

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6
"""The number of prompt tokens decoded as context: enough for the longest character (4 byte tokens) and a word."""
_MAX_PENDING_TOKENS = 16
"""A character takes at most 4 byte tokens, so a longer unreadable run never becomes a character."""
_MAX_CHARACTER_TOKENS = 4


class Decoder(Protocol):
    """The part of a tokenizer that the detokenizer uses."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""
        ...


class IncrementalDetokenizer:
    """Decodes a stream of tokens.

    The text of a token depends on the tokens before it: a leading space is dropped at the start of a text, and several
    byte tokens make up one character. A push therefore decodes a window twice, without and with the new tokens. The
    window starts at the last tokens already shown. The difference is the new text. It is held back while the window
    ends inside a character.

    Args:
      tokenizer: the tokenizer.
      skip_special_tokens: leave special tokens out of the text.
      prompt_token_ids: the tokens that the stream continues. They let the first word keep its leading space.
    """

    def __init__(self, tokenizer: Decoder, skip_special_tokens: bool = True, *, prompt_token_ids: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        # The window: context tokens whose text was shown, then tokens whose text was not.
        self._window = list(prompt_token_ids[-_CONTEXT_TOKENS:])
        self._num_shown = len(self._window)
        self._shown_text = self._decode(self._window)

    def push(self, token_ids: Sequence[int]) -> str:
        """Adds tokens and returns the text that is now complete, which is often ""."""
        shown: list[str] = []
        # One token at a time, so that a long push does not make a long window.
        for token in token_ids:
            self._window.append(token)
            shown.append(self._take())
        return "".join(shown)

    def flush(self) -> str:
        """Returns the rest of the text at the end of the stream. Unreadable bytes become U+FFFD."""
        text = self._decode(self._window)
        new = text[len(self._shown_text) :]
        self._slide(len(self._window))
        return new

    def _take(self) -> str:
        text = self._decode(self._window)
        if len(text) <= len(self._shown_text):
            return ""
        end = len(self._window)
        if text.endswith(_REPLACEMENT):
            if end - self._num_shown <= _MAX_PENDING_TOKENS:
                return ""
            end = self._last_boundary(text)
            text = self._decode(self._window[:end])
        new = text[len(self._shown_text) :]
        self._slide(end)
        return new

    def _last_boundary(self, text: str) -> int:
        """Returns where an unreadable window can be cut without splitting a character that may still be completed."""
        size = len(self._window)
        for end in range(size - _MAX_CHARACTER_TOKENS + 1, size):
            if self._decode(self._window[:end]) + self._decode(self._window[end:]) == text:
                return end
        return size

    def _slide(self, end: int) -> None:
        """Marks the tokens before `end` as shown. The tokens shown last become the context of the next ones."""
        self._window = self._window[self._num_shown :]
        self._num_shown = end - self._num_shown
        self._shown_text = self._decode(self._window[: self._num_shown])

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
