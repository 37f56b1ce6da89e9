"""The tokens of a text that continues another, behind the very tokens a server makes of the first.

A model that answers a prompt starts from the prompt's own tokens. Tokens of prompt and answer taken together may
differ there: a tokenizer merges across the border. Then prompt and answer are tokenized apart, which is rare: chat
templates end prompts with special tokens or line ends.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ryzjax.data.tokenizer import Tokenizer

__all__ = ["continue_ids", "encode_pieces"]


def continue_ids(
    tokenizer: Tokenizer, prompt: str, prompt_ids: Sequence[int], more: str, *, add_special_tokens: bool = False
) -> list[int]:
    """Token ids of `prompt + more` that begin with `prompt_ids`.

    Args:
      prompt: the text.
      prompt_ids: its tokens, encoded with the same `add_special_tokens`.
      more: what follows it.

    Raises:
      ValueError: there are none: the tokenizer cannot write `more` on its own.
    """
    prompt_ids = list(prompt_ids)
    together = tokenizer.encode(prompt + more, add_special_tokens=add_special_tokens)
    if together[: len(prompt_ids)] == prompt_ids:
        return together
    # Tokenizers that put a space before a text put one before `more`, too: after a line end they do not.
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
    """Token ids of a rendered text with a token border at each of some characters.

    Args:
      borders: characters, ascending.

    Returns:
      The ids, and for each border how many tokens are before it.

    Raises:
      ValueError: as `continue_ids`.
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
