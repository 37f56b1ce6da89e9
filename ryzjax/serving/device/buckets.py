"""The step shapes that are compiled ahead: a step is padded up to the next one."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

__all__ = ["Buckets"]

_SAMPLES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Finer than powers of two, which waste up to half of a step.
_ROWS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
_TOKENS = (16, 32, 64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384)


@dataclass(frozen=True, kw_only=True)
class Buckets:
    """Padded sizes, each ascending.

    Attributes:
      decode: tokens of a step in which every row decodes.
      mixed: tokens of a step with prefill chunks.
      sample: rows of the head.
    """

    decode: tuple[int, ...]
    mixed: tuple[int, ...]
    sample: tuple[int, ...]

    @classmethod
    def make(cls, *, max_sequences: int, max_batch_tokens: int, multiple: int = 1) -> Buckets:
        """Buckets up to the given limits.

        Args:
          multiple: every token bucket is a multiple of this (devices along the tokens axis).
        """
        return cls(
            decode=_up_to(_ROWS, max_sequences, multiple),
            mixed=_up_to(_TOKENS, max_batch_tokens, multiple),
            sample=_up_to(_SAMPLES, max_sequences, 1),
        )

    def decode_tokens(self, tokens: int) -> int:
        """Bucket of a decode step."""
        return _at_least(self.decode, tokens)

    def mixed_tokens(self, tokens: int) -> int:
        """Bucket of a step with chunks."""
        return _at_least(self.mixed, tokens)

    def sample_rows(self, rows: int) -> int:
        """Bucket of the head."""
        return _at_least(self.sample, rows)


def _up_to(sizes: tuple[int, ...], limit: int, multiple: int) -> tuple[int, ...]:
    below = [size for size in sizes if size < limit]
    return tuple(sorted({-(-size // multiple) * multiple for size in (*below, limit)}))


def _at_least(sizes: tuple[int, ...], wanted: int) -> int:
    return sizes[bisect_left(sizes, wanted)]
