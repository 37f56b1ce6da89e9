"""PromptLogprobs: arrays with the interface of a list of objects."""

from __future__ import annotations

import numpy as np
import pytest

from ryzjax.serving.messages.request import PromptLogprobs, PromptScores, TokenLogprobs


def scores(first: int, count: int) -> PromptScores:
    tokens = np.arange(first, first + count, dtype=np.int32)
    top = np.stack([tokens, tokens + 100], axis=1)
    return PromptScores(
        token_ids=tokens,
        logprobs=-tokens.astype(np.float32),
        ranks=np.full(count, 2, np.int32),
        top_tokens=top,
        top_logprobs=-top.astype(np.float32),
    )


def entry(token: int) -> TokenLogprobs:
    top = ((token, -float(token)), (token + 100, -float(token + 100)))
    return TokenLogprobs(token_id=token, logprob=-float(token), rank=2, top=top)


EXPECTED = [None, *map(entry, range(1, 11))]


@pytest.mark.parametrize("sizes", [[10], [1, 9], [4, 3, 3], [5, 0, 5]])
def test_it_reads_like_a_list_however_the_prompt_was_cut(sizes: list[int]) -> None:
    starts = np.cumsum([1, *sizes[:-1]])
    found = PromptLogprobs([scores(int(start), size) for start, size in zip(starts, sizes, strict=True)])
    assert len(found) == 11 and list(found) == EXPECTED and found == EXPECTED and found == tuple(EXPECTED)
    assert found == PromptLogprobs([scores(1, 10)]) and found != EXPECTED[:-1] and found != [*EXPECTED[:-1], None]
    assert [found[i] for i in range(-11, 11)] == EXPECTED * 2
    for start in range(-12, 13):
        for stop in (*range(-12, 13), None):
            assert found[start:stop] == EXPECTED[start:stop]
            assert found[start:stop:3] == EXPECTED[start:stop:3]
    assert found[::-1] == EXPECTED[::-1]
    for outside in (11, -12):
        with pytest.raises(IndexError, match=f"token {outside} of a prompt of 11 tokens"):
            found[outside]


def test_a_prompt_of_one_token_has_no_log_probability() -> None:
    assert list(PromptLogprobs([])) == [None]
    assert PromptLogprobs([]) != 5
