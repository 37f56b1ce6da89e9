"""Echo: the prompts of a /v1/completions request that asks for them in front of its completions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Echo"]


@dataclass(frozen=True, kw_only=True)
class Echo:
    """The prompts to repeat in the answer of one request.

    Attributes:
      texts: The text of each prompt.
      first_token_ids: The first token id of each prompt. It has no log-probability, because nothing precedes it.
      n: The number of completions of each prompt. Choices are numbered prompt by prompt.
      with_logprobs: Whether the answer holds the log-probabilities of the prompt before those of the completion.
    """

    texts: Sequence[str]
    first_token_ids: Sequence[int]
    n: int
    with_logprobs: bool

    def text(self, choice: int) -> str:
        """Returns the prompt of a choice."""
        return self.texts[choice // self.n]

    def first_token_id(self, choice: int) -> int:
        """Returns the first token id of a choice's prompt."""
        return self.first_token_ids[choice // self.n]
