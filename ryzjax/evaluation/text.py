"""A text to measure a model on, cut into windows that fit its context."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from ryzjax.errors import ConfigError, DataError

__all__ = ["EvaluationText", "Window", "sliding_windows"]


@dataclass(frozen=True, kw_only=True)
class EvaluationText:
    """A text and where it is from.

    Attributes:
      text: not empty.
      name: the file's, for messages and reports.
      num_bytes: of the UTF-8 text.
      sha256: of those bytes, hexadecimal.
    """

    text: str
    name: str
    num_bytes: int
    sha256: str

    @classmethod
    def read(cls, path: str | Path) -> EvaluationText:
        """Reads a UTF-8 file, whole and unchanged.

        Raises:
          DataError: the file is missing, empty or not UTF-8.
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
        """A text that is in memory.

        Raises:
          DataError: it is empty, or has lone surrogates.
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
    """Tokens [begin, end) of a text, run at once; those of [first_target, end) are scored.

    begin            first_target        end
      | context ...       | targets ...   |
    """

    begin: int
    first_target: int
    end: int

    @property
    def num_targets(self) -> int:
        """Tokens scored in this window."""
        return self.end - self.first_target


def sliding_windows(num_tokens: int, *, context_tokens: int, stride_tokens: int) -> tuple[Window, ...]:
    """Windows that score every token of a text but the first exactly once.

    The first window scores all it can; each further one begins `stride_tokens` later and scores what the one before
    did not reach, with at least `context_tokens - stride_tokens` tokens of context where the text goes on so far. It
    is the sliding window of Hugging Face's guide to perplexity. A stride of `context_tokens - 1` gives windows that
    share one token only.

    Args:
      num_tokens: of the text, those the tokenizer adds included.
      context_tokens: longest window.
      stride_tokens: from 1 to `context_tokens` - 1.

    Raises:
      ConfigError: a context of fewer than 2 tokens, or a stride that leaves tokens without context.
      DataError: fewer than 2 tokens.
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
