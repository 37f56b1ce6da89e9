"""The randomness of a row, and the split of problems into training and test."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

__all__ = ["TEST_ONE_IN", "Draw", "Split", "split_of"]

Problem = TypeVar("Problem")

Split = Literal["train", "test"]

TEST_ONE_IN = 10
"""One problem in this many is a test problem."""
_MAX_TRIES = 100_000


def split_of(space: str, problem: object) -> Split:
    """Returns the split of a problem, from a hash of the problem. It never changes, and no problem is in both splits.

    Args:
      space: the name of the kind of problem. Tasks that ask the same problem share a space.
      problem: plain values whose `repr` is different for every problem.
    """
    digest = hashlib.blake2b(f"{space}:{problem!r}".encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_ONE_IN == 0 else "train"


@dataclass(frozen=True, kw_only=True)
class Draw:
    """The source of randomness from which a task draws a row.

    Attributes:
      rng: the random numbers of the row.
      split: the split whose problems the row may use.
      progress: the place of the row in the run, from 0 to 1. Early rows may be easier.
    """

    rng: random.Random
    split: Split
    progress: float = 1.0

    def admits(self, space: str, problem: object) -> bool:
        """Returns whether a problem belongs to this split. See `split_of`."""
        return split_of(space, problem) == self.split

    def fresh(
        self, space: str, make: Callable[[], Problem], *, key: Callable[[Problem], object] | None = None
    ) -> Problem:
        """Returns a problem of this split. It calls `make` until `make` returns one.

        Args:
          space: see `split_of`.
          make: draws a problem from `rng`.
          key: maps equal problems (5 + 3 and 3 + 5) to the same value. By default, every problem is different.
        """
        for _ in range(_MAX_TRIES):
            problem = make()
            if self.admits(space, problem if key is None else key(problem)):
                return problem
        raise AssertionError(f"no problem of {space!r} is in the {self.split} split")
