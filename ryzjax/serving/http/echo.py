"""Echo: the prompts that a completion request wants back in front of its completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Echo"]


@dataclass(frozen=True, kw_only=True)
class Echo:
    """The prompts of one request.

    Attributes:
      texts: of each prompt.
      first_token_ids: of each prompt; nothing precedes it, so it has no log-probability.
      n: completions a prompt: choices are numbered prompt by prompt.
      with_logprobs: whether the prompt's log-probabilities go in front of the completion's.
    """

    texts: Sequence[str]
    first_token_ids: Sequence[int]
    n: int
    with_logprobs: bool

    def text(self, choice: int) -> str:
        """What stands in front of a choice's completion."""
        return self.texts[choice // self.n]

    def first_token_id(self, choice: int) -> int:
        """The first token of a choice's prompt."""
        return self.first_token_ids[choice // self.n]
