"""Text from a growing list of tokens: each push costs its own tokens, and no character is shown half."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

__all__ = ["Decoder", "IncrementalDetokenizer"]

_REPLACEMENT = "\ufffd"
_CONTEXT_TOKENS = 6
"""How much of the prompt is decoded as context: enough for the longest character (4 byte tokens) and a word."""
_MAX_PENDING_TOKENS = 16
"""A character takes 4 byte tokens at most: a longer unreadable run is not going to become one."""
_MAX_CHARACTER_TOKENS = 4


class Decoder(Protocol):
    """What is needed of a tokenizer."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of `ids`."""
        ...


class IncrementalDetokenizer:
    """Decodes a stream of tokens.

    A tokenizer's text for a token depends on the tokens before it (a leading space is dropped at the start, bytes
    make up characters), so a push decodes a window that begins at the last tokens already shown, twice: without and
    with the new tokens. The difference is the new text. While the window ends inside a character it is held back.

    Args:
      tokenizer: decodes.
      skip_special_tokens: leave special tokens out of the text.
      prompt_token_ids: what the stream continues. With it, a first word keeps its leading space.
    """

    def __init__(self, tokenizer: Decoder, skip_special_tokens: bool = True, *, prompt_token_ids: Sequence[int] = ()):
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        # The window: context tokens whose text was shown, then tokens whose text was not.
        self._window = list(prompt_token_ids[-_CONTEXT_TOKENS:])
        self._num_shown = len(self._window)
        self._shown_text = self._decode(self._window)

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes more tokens; returns the text that is complete now (often "")."""
        shown: list[str] = []
        # One at a time: a long push must not make a long window.
        for token in token_ids:
            self._window.append(token)
            shown.append(self._take())
        return "".join(shown)

    def flush(self) -> str:
        """The rest of the text, unreadable bytes as U+FFFD: the stream has ended."""
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
        """Where an unreadable window can be cut without cutting what may still become a character."""
        size = len(self._window)
        for end in range(size - _MAX_CHARACTER_TOKENS + 1, size):
            if self._decode(self._window[:end]) + self._decode(self._window[end:]) == text:
                return end
        return size

    def _slide(self, end: int) -> None:
        """Everything before `end` is shown: the tokens shown last become the context of what follows."""
        self._window = self._window[self._num_shown :]
        self._num_shown = end - self._num_shown
        self._shown_text = self._decode(self._window[: self._num_shown])

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=self._skip_special_tokens)
