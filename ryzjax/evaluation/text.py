"""Held-out texts, and the windows that cut a text to the context of a model."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ryzjax.errors import ConfigError, DataError

__all__ = ["EvaluationText", "Window", "sliding_windows"]


@dataclass(frozen=True, kw_only=True)
class EvaluationText:
    """A text to measure a model on.

    Attributes:
      text: The text, which is not empty.
      name: The name of its file, for messages and reports.
      num_bytes: The number of its UTF-8 bytes.
      sha256: The SHA-256 of those bytes, hexadecimal.
    """

    text: str
    name: str
    num_bytes: int
    sha256: str

    @classmethod
    def read(cls, path: str | Path) -> EvaluationText:
        """Reads a whole UTF-8 file, unchanged.

        Raises:
          DataError: The file is missing, empty or not UTF-8.
        """
        where = Path(path).expanduser()
        try:
            raw = where.read_bytes()
        except OSError as error:
            raise DataError(f"text file {str(path)!r} cannot be read ({error.strerror}); check the path") from error
        try:
            return cls.of(raw.decode("utf-8"), name=str(path))
        except UnicodeDecodeError as error:
            raise DataError(
                f"text file {str(path)!r} is not UTF-8 (byte {error.start}); convert it, with iconv for example"
            ) from error

    @classmethod
    def of(cls, text: str, *, name: str = "text") -> EvaluationText:
        """Wraps a text that is in memory.

        Raises:
          DataError: The text is empty, or has lone surrogates.
        """
        if not text:
            raise DataError(f"{name!r} is empty; give a text of at least two tokens")
        try:
            raw = text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(f"{name!r} has a lone surrogate at position {error.start}; give valid Unicode") from error
        return cls(text=text, name=name, num_bytes=len(raw), sha256=hashlib.sha256(raw).hexdigest())


@dataclass(frozen=True, kw_only=True)
class Window:
    """A window of a text. The tokens [begin, end) run together, and those in [first_target, end) are scored.

    begin            first_target        end
      | context ...       | targets ...   |
    """

    begin: int
    first_target: int
    end: int

    @property
    def num_targets(self) -> int:
        """The number of tokens that this window scores."""
        return self.end - self.first_target


def sliding_windows(num_tokens: int, *, context_tokens: int, stride_tokens: int) -> tuple[Window, ...]:
    """Returns windows that score each token of a text exactly once, except the first token.

    The first window scores all of its tokens but the first. Each later window starts `stride_tokens` after the previous
    one and scores the tokens past the previous one's end. Each of them has at least `context_tokens - stride_tokens`
    tokens of context. These are the sliding windows of Hugging Face's guide to perplexity. With a stride of
    `context_tokens - 1`, neighbouring windows share one token.

    Args:
      num_tokens: The number of tokens of the text, including those that the tokenizer adds.
      context_tokens: The length of the longest window.
      stride_tokens: The distance between the starts of windows, from 1 to `context_tokens` - 1.

    Raises:
      ConfigError: The context is less than 2 tokens, or the stride leaves tokens without context.
      DataError: The text has fewer than 2 tokens.
    """
    if context_tokens < 2:
        raise ConfigError(f"context_tokens={context_tokens} is too small; expected at least 2")
    if not 1 <= stride_tokens < context_tokens:
        raise ConfigError(
            f"stride_tokens={stride_tokens} is out of range; expected 1 to {context_tokens - 1}, one less than "
            "context_tokens: a token is scored after at least one other"
        )
    if num_tokens < 2:
        raise DataError(f"the text has {num_tokens} token(s); expected at least 2, of which all but the first count")
    windows = [Window(begin=0, first_target=1, end=min(context_tokens, num_tokens))]
    while windows[-1].end < num_tokens:
        last = windows[-1]
        begin = last.begin + stride_tokens
        windows.append(Window(begin=begin, first_target=last.end, end=min(begin + context_tokens, num_tokens)))
    return tuple(windows)
