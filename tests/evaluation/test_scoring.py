"""Pairs are tokenized as lm-evaluation-harness does, and scored as a forward outside the engine does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ryzjax import LLM
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError, ContextLengthError
from ryzjax.evaluation import OpenModel
from ryzjax.evaluation.scoring import Continuation, EncodedPair, complete, encode_pair, fit_pair, score
from tests.evaluation.logprobs import Oracle


def pair(context: str, continuation: str) -> Continuation:
    return Continuation(context=context, continuation=continuation)


def test_split_of_merged_tokens(shared: Path) -> None:
    tokenizer = Tokenizer.load(shared / "tokenizers" / "gpt2")
    plain = encode_pair(tokenizer, pair("The cat sat on", " the mat."))
    # The space at the end goes with the next word, as the model has seen it.
    moved = encode_pair(tokenizer, pair("The cat sat on ", "the mat."))
    assert plain == moved
    assert tokenizer.decode(list(plain.context)) == "The cat sat on"
    assert tokenizer.decode(list(plain.continuation)) == " the mat."
    # A word that goes on: tokens of the whole, cut after as many as the context has alone.
    inside = encode_pair(tokenizer, pair("The mathem", "atics"))
    whole = tokenizer.encode("The mathematics")
    assert [*inside.continuation] == whole[len(tokenizer.encode("The mathem")) :]


def test_bos_comes_once_and_empty_contexts_begin_with_it(stories: Path, shared: Path) -> None:
    tokenizer = Tokenizer.load(stories)
    found = encode_pair(tokenizer, pair("Once upon", " a time"))
    assert [*found.context, *found.continuation] == tokenizer.encode("Once upon a time")
    assert found.context[0] == 1 and 1 not in found.continuation
    bare = encode_pair(tokenizer, pair("Once upon", " a time"), add_special_tokens=False)
    assert [*bare.context, *bare.continuation] == tokenizer.encode("Once upon a time", add_special_tokens=False)
    empty = encode_pair(tokenizer, pair("", "Once"))
    assert empty == EncodedPair(context=(1,), continuation=tuple(tokenizer.encode("Once", add_special_tokens=False)))
    gpt2 = Tokenizer.load(shared / "tokenizers" / "gpt2")
    (end,) = gpt2.eos_token_ids
    assert encode_pair(gpt2, pair("", "Once")).context == (end,)
    # White space alone has no token of its own once it has moved.
    assert encode_pair(gpt2, pair(" ", "Once")) == EncodedPair(context=(end,), continuation=tuple(gpt2.encode(" Once")))


def test_contexts_are_cut_on_the_left() -> None:
    whole = EncodedPair(context=(1, 2, 3, 4), continuation=(5, 6))
    assert fit_pair(whole, 6) is whole
    assert fit_pair(whole, 4) == EncodedPair(context=(3, 4), continuation=(5, 6), is_cut=True)
    with pytest.raises(ContextLengthError, match="a continuation has 2 tokens; at most 1 fit a context of 2"):
        fit_pair(whole, 2)


def test_scores_of_a_forward(tiny_llm: LLM, tiny: OpenModel) -> None:
    oracle = Oracle(tiny.model, tiny.load(), max_tokens=100)
    pairs = [pair("abc" * i, " " + "xyz"[: 1 + i % 3] * i) for i in range(1, 12)]
    for wanted, found in zip(pairs, score(tiny_llm, pairs, title="t"), strict=True):
        both = tiny.tokenizer.encode(wanted.context + wanted.continuation)
        begin = len(wanted.context)
        rows = oracle.logprobs(both)[begin - 1 :]
        chosen = rows[np.arange(len(rows)), both[begin:]]
        assert found.logprob == pytest.approx(chosen.sum(), rel=1e-4)
        assert found.is_greedy == bool((chosen == rows.max(axis=-1)).all())
        assert (found.num_tokens, found.is_cut) == (len(wanted.continuation), False)


def test_greedy_continuations_are_seen(stories_llm: LLM) -> None:
    (found,) = complete(
        stories_llm, [stories_llm.engine.encode("Once upon a time")], stop=("mom",), max_new_tokens=12, title="t"
    )
    assert found.text.startswith(", there was") and "mom" not in found.text
    good, bad = score(
        stories_llm, [pair("Once upon a time", ", there was"), pair("Once upon a time", ", there cat")], title="t"
    )
    assert good.is_greedy and not bad.is_greedy
    assert good.logprob > bad.logprob + 1


def test_cut_contexts_are_scored(tiny_llm: LLM) -> None:
    long = "abcdefgh" * 100
    cut, same = (score(tiny_llm, [pair(text, " z")], title="t", max_tokens=40)[0] for text in (long, long[-38:]))
    assert cut.is_cut and not same.is_cut
    assert cut.logprob == pytest.approx(same.logprob, abs=1e-5)


def test_bad_settings(tiny_llm: LLM) -> None:
    with pytest.raises(ConfigError, match="max_tokens=513 is out of range; expected 2 to 512"):
        score(tiny_llm, [pair("a", "b")], title="t", max_tokens=513)
    with pytest.raises(ContextLengthError, match="a continuation has 600 tokens"):
        score(tiny_llm, [pair("a", "b" * 600)], title="t")
    with pytest.raises(ConfigError, match="a completion of 512 tokens leaves no room"):
        complete(tiny_llm, [[5]], stop=(), max_new_tokens=512, title="t")
