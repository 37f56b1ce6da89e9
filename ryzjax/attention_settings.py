"""AttentionSettings: the constants of one layer's attention scores."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["AttentionSettings"]


@dataclass(frozen=True, kw_only=True)
class AttentionSettings:
    """The constants that turn products of queries and keys into scores.

    There are no defaults, so that no caller can forget a window or a soft cap of its model.

    Attributes:
      scale: the factor of the scores, usually head_dim**-0.5.
      window: the most tokens that a query attends to, itself included; None for all tokens before it.
      softcap: scores become softcap * tanh(score / softcap) (Gemma 2); None leaves them as they are.
    """

    scale: float
    window: int | None
    softcap: float | None
