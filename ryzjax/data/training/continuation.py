"""Tokenizes a text that continues a prompt, so that its tokens start with the tokens that a server makes of the prompt.

A model that answers a prompt starts from the prompt's own tokens. Tokenizing prompt and answer together may give other
tokens, because a tokenizer can merge characters across the border. In that case prompt and answer are tokenized
separately. It is rare, because chat templates end prompts with special tokens or line ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ryzjax.data.tokenizer import Tokenizer

__all__ = ["continue_ids", "encode_pieces"]


def continue_ids(
    tokenizer: Tokenizer, prompt: str, prompt_ids: Sequence[int], more: str, *, add_special_tokens: bool = False
) -> list[int]:
    """Returns token ids of `prompt + more` that start with `prompt_ids`.

    Args:
      tokenizer: The model's tokenizer.
      prompt: The text before.
      prompt_ids: Token ids of the prompt, encoded with the same `add_special_tokens`.
      more: The text that follows the prompt.
      add_special_tokens: Whether the prompt has the tokenizer's special tokens, such as BOS.

    Raises:
      ValueError: The tokenizer cannot encode `more` separately.
    """
    prompt_ids = list(prompt_ids)
    together = tokenizer.encode(prompt + more, add_special_tokens=add_special_tokens)
    if together[: len(prompt_ids)] == prompt_ids:
        return together
    # Some tokenizers put a space before every text, so before `more` too, but not after a line end.
    line = tokenizer.encode("\n", add_special_tokens=False)
    after_line = tokenizer.encode("\n" + more, add_special_tokens=False)
    candidates = [prompt_ids + tokenizer.encode(more, add_special_tokens=False)]
    if after_line[: len(line)] == line:
        candidates.append(prompt_ids + after_line[len(line) :])
    expected = tokenizer.decode(together, skip_special_tokens=False)
    for ids in candidates:
        if tokenizer.decode(ids, skip_special_tokens=False) == expected:
            return ids
    raise ValueError(f"the tokenizer has no tokens for {more[:40]!r} right behind {prompt[-40:]!r}")


def encode_pieces(tokenizer: Tokenizer, text: str, borders: Sequence[int]) -> tuple[list[int], list[int]]:
    """Returns token ids of a rendered text with a token border at given characters.

    Args:
      tokenizer: The model's tokenizer.
      text: The rendered text.
      borders: Indices of characters, ascending.

    Returns:
      The ids, and the number of tokens before each border.

    Raises:
      ValueError: The tokenizer cannot encode a piece separately.
    """
    ids, offsets = tokenizer.encode_with_offsets(text)
    starts, ends = np.asarray(offsets, np.int64).reshape(-1, 2).T
    before = np.searchsorted(starts, borders)
    if all(count == 0 or ends[count - 1] <= at for count, at in zip(before, borders, strict=True)):
        return ids, before.tolist()
    counts: dict[int, int] = {}
    ids, done = [], 0
    for at in [*dict.fromkeys(borders), len(text)]:
        ids = continue_ids(tokenizer, text[:done], ids, text[done:at])
        counts[at], done = len(ids), at
    return ids, [counts[at] for at in borders]
