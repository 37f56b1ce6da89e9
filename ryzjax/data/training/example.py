"""Example: the tokens of one example, and which of them are targets."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Example"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """Tokens, some of which the model is trained to predict.

    Attributes:
      token_ids: int32 [T].
      trained: bool [T]; whether token i is a target of the loss. The first never is, because nothing predicts it.
    """

    token_ids: np.ndarray
    trained: np.ndarray

    @classmethod
    def of(cls, token_ids: list[int], spans: list[tuple[int, int]]) -> Example:
        """Returns an example whose targets are the tokens in the half-open `spans`."""
        trained = np.zeros(len(token_ids), bool)
        for start, end in spans:
            trained[max(start, 1) : end] = True
        return cls(token_ids=np.asarray(token_ids, np.int32), trained=trained)

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_trained(self) -> int:
        """Number of targets."""
        return int(self.trained.sum())

    def cut(self, max_tokens: int) -> Example:
        """Returns the first `max_tokens` tokens."""
        return Example(token_ids=self.token_ids[:max_tokens], trained=self.trained[:max_tokens])
