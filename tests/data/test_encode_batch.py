"""Tokenizer.encode_batch returns the same tokens as encode."""

from __future__ import annotations

from pathlib import Path

import fake_tokenizers
import pytest

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import RequestError

# The texts fill more than one internal batch and differ much in length.
TEXTS = ["", "Hello world", "été 東京 你好 😀", " leading", "x" * 300, "a\n\n b"] * 60


@pytest.mark.parametrize("add_special_tokens", [True, False])
def test_equals_encode(tokenizer: Tokenizer, add_special_tokens: bool):
    each = [tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in TEXTS]
    assert tokenizer.encode_batch(TEXTS, add_special_tokens=add_special_tokens) == each
    assert tokenizer.encode_batch([]) == []


@pytest.mark.parametrize("add_bos", [True, False])
def test_a_bos_flag_counts(tmp_path: Path, add_bos: bool):
    config: dict[str, object] = {"bos_token": "<s>", "tokenizer_class": "LlamaTokenizer", "add_bos_token": add_bos}
    tokenizer = Tokenizer.load(fake_tokenizers.save(fake_tokenizers.byte_fallback(), tmp_path, config))
    each = [tokenizer.encode(text) for text in TEXTS]
    assert tokenizer.encode_batch(TEXTS) == each
    assert (each[0] == [tokenizer.bos_token_id]) == add_bos


def test_bad_text(tokenizer: Tokenizer):
    with pytest.raises(RequestError, match="lone surrogate"):
        tokenizer.encode_batch(["fine", "a\ud800b"])
    with pytest.raises(RequestError, match="text is a int"):
        tokenizer.encode_batch(["fine", 7])  # type: ignore[list-item]
