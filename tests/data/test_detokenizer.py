"""Detokenizer: incremental text equals the whole text, never has half a character, and decodes only its own tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ryzjax.data.detokenizer import IncrementalDetokenizer
from ryzjax.data.tokenizer import Tokenizer
from tests.shared import SHARED, needs_shared

REAL = ["models/stories260K", "tokenizers/gpt2", "tokenizers/smollm2", "tokenizers/qwen3"]
TEXTS = [
    "Hello, world!  Two spaces,\n\nnew lines\tand a tab. ",
    "é è ü ß ñ naïve 東京タワー 你好世界 한국어 العربية हिन्दी",
    "😀👨‍👩‍👧‍👦🏳️‍🌈 a😀b 😀",
    "def f(x):\n    return x ** 2  # comment\r\n",
    "\u0301 combining, \u200d joiner, \ufffd replacement \ufffd\ufffd\ufffd",
]

shared_settings = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def stream(tokenizer: Tokenizer, ids: Sequence[int], size: int = 1, *, skip: bool = True) -> str:
    detokenizer = IncrementalDetokenizer(tokenizer, skip)
    pieces = [detokenizer.push(ids[i : i + size]) for i in range(0, len(ids), size)]
    return "".join(pieces) + detokenizer.flush()


@shared_settings
@given(text=st.text(max_size=60), size=st.integers(1, 5), special=st.booleans())
def test_any_text(tokenizer: Tokenizer, text: str, size: int, special: bool):
    ids = tokenizer.encode(text, add_special_tokens=special)
    for skip in (True, False):
        assert stream(tokenizer, ids, size, skip=skip) == tokenizer.decode(ids, skip_special_tokens=skip)


@shared_settings
@given(data=st.data())
def test_any_ids(tokenizer: Tokenizer, data: st.DataObject):
    """Random ids spell broken characters, and only readable texts must be the same.

    If a byte is broken, byte fallback decodes its whole run of bytes to U+FFFD, but text that was already shown cannot
    be taken back.
    """
    ids = data.draw(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=40))
    text = stream(tokenizer, ids)
    whole = tokenizer.decode(ids)
    if "\ufffd" not in whole:
        assert text == whole


def test_half_a_character_is_held_back(tokenizer: Tokenizer):
    ids = tokenizer.encode("a😀b", add_special_tokens=False)
    detokenizer = IncrementalDetokenizer(tokenizer)
    pieces = [detokenizer.push([token]) for token in ids]
    assert "".join(pieces) == "a😀b"
    assert "😀" in pieces and not any("\ufffd" in piece for piece in pieces)


def test_flush_shows_an_unfinished_character(tokenizer: Tokenizer):
    ids = tokenizer.encode("a😀", add_special_tokens=False)[:-1]
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert detokenizer.push(ids) == "a"
    rest = detokenizer.flush()
    assert rest and set(rest) == {"\ufffd"}
    assert detokenizer.flush() == ""


def test_broken_bytes_do_not_hold_text_back_for_ever(tokenizer: Tokenizer):
    """After broken bytes, the next whole character is still shown."""
    broken = tokenizer.encode("😀", add_special_tokens=False)[-1]
    ids = [broken] * 50 + tokenizer.encode("😀", add_special_tokens=False)[-4:] + tokenizer.encode("ok")
    detokenizer = IncrementalDetokenizer(tokenizer)
    shown = ["" for _ in ids]
    for i, token in enumerate(ids):
        shown[i] = detokenizer.push([token])
    assert any(shown[:30])
    assert ("".join(shown) + detokenizer.flush()).endswith("ok")


class CountingDecoder:
    """Counts the tokens that it decodes."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.num_tokens = 0

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        self.num_tokens += len(ids)
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)


def test_cost_grows_with_the_new_tokens_only(tokenizer: Tokenizer):
    broken = tokenizer.encode("😀", add_special_tokens=False)[-1]
    for ids in (tokenizer.encode("the cat sat. " * 300), [broken] * 2000):
        decoder = CountingDecoder(tokenizer)
        detokenizer = IncrementalDetokenizer(decoder)
        for token in ids:
            detokenizer.push([token])
        assert decoder.num_tokens < 40 * len(ids)


def test_prompt_gives_the_first_word_its_space(tmp_path: Path):
    import fake_tokenizers

    tokenizer = Tokenizer.load(fake_tokenizers.save(fake_tokenizers.byte_fallback(), tmp_path))
    prompt, whole = tokenizer.encode("the cat"), tokenizer.encode("the cat the cat")
    new = whole[len(prompt) :]
    detokenizer = IncrementalDetokenizer(tokenizer, prompt_token_ids=prompt)
    assert detokenizer.push(new) + detokenizer.flush() == " the cat"
    assert stream(tokenizer, new) == "the cat"


@needs_shared
@pytest.mark.parametrize("name", REAL)
def test_real_tokenizers(name: str):
    tokenizer = Tokenizer.load(SHARED / name)
    for text in TEXTS:
        ids = tokenizer.encode(text)
        for size in (1, 3):
            assert stream(tokenizer, ids, size) == tokenizer.decode(ids)
