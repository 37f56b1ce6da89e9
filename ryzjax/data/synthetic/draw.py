"""Where the randomness of a row comes from, and which problems belong to training and which to testing."""

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
"""One problem in so many is for testing."""
_MAX_TRIES = 100_000


def split_of(space: str, problem: object) -> Split:
    """Which split a problem belongs to, by a hash of what it is: it never changes, and no problem is in both.

    Args:
      space: what kind of problem; problems of several tasks that are the same problem share a space.
      problem: of plain values, whose `repr` tells it from all others.
    """
    digest = hashlib.blake2b(f"{space}:{problem!r}".encode(), digest_size=8).digest()
    return "test" if int.from_bytes(digest, "big") % TEST_ONE_IN == 0 else "train"


@dataclass(frozen=True, kw_only=True)
class Draw:
    """What a task draws a row from.

    Attributes:
      rng: all of the row's randomness.
      split: whose problems it may use.
      progress: where in the run the row stands, from 0 to 1: early rows may be easier.
    """

    rng: random.Random
    split: Split
    progress: float = 1.0

    def admits(self, space: str, problem: object) -> bool:
        """Whether a problem is of this split; see `split_of`."""
        return split_of(space, problem) == self.split

    def fresh(
        self, space: str, make: Callable[[], Problem], *, key: Callable[[Problem], object] | None = None
    ) -> Problem:
        """A problem of this split: `make` is called until it gives one.

        Args:
          space: see `split_of`.
          make: draws a problem from `rng`.
          key: what makes problems the same (5 + 3 and 3 + 5); by default all of it.
        """
        for _ in range(_MAX_TRIES):
            problem = make()
            if self.admits(space, problem if key is None else key(problem)):
                return problem
        raise AssertionError(f"no problem of {space!r} is in the {self.split} split")
