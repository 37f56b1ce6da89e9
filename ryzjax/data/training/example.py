"""One tokenized example: its tokens, and which of them are targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Example"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """Tokens that a model is trained to predict in part.

    Attributes:
      token_ids: int32 [T].
      trained: bool [T]; whether token i is a target of the loss. Never the first: nothing predicts it.
    """

    token_ids: np.ndarray
    trained: np.ndarray

    @classmethod
    def of(cls, token_ids: list[int], spans: list[tuple[int, int]]) -> Example:
        """Tokens of which the half-open `spans` are targets."""
        trained = np.zeros(len(token_ids), bool)
        for start, end in spans:
            trained[max(start, 1) : end] = True
        return cls(token_ids=np.asarray(token_ids, np.int32), trained=trained)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_trained(self) -> int:
        """Targets."""
        return int(self.trained.sum())

    def cut(self, max_tokens: int) -> Example:
        """The first tokens of it."""
        return Example(token_ids=self.token_ids[:max_tokens], trained=self.trained[:max_tokens])
