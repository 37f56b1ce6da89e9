from __future__ import annotations

from ryzjax.serving.http.logprobs import TokenTexts, chat_logprobs, completion_logprobs
from ryzjax.serving.request import TokenLogprobs
from tests.serving.http.fake_engine import FakeTokenizer


class HalfCharacterTokenizer(FakeTokenizer):
    """Tokens from 128 are halves of characters."""

    def decode(self, ids: object, *, skip_special_tokens: bool = True) -> str:
        assert isinstance(ids, list)
        return "".join("\ufffd" if token >= 128 else chr(token) for token in ids)


def test_half_a_character_has_no_bytes() -> None:
    tokens = [TokenLogprobs(token_id=65, logprob=-1.0, rank=1, top=((200, -0.5), (65, -1.0)))]
    (token,) = chat_logprobs(tokens, TokenTexts(HalfCharacterTokenizer()))["content"]
    assert token["bytes"] == [65]
    assert [top["bytes"] for top in token["top_logprobs"]] == [None, [65]]


def test_the_likelier_of_two_tokens_with_one_text_is_kept() -> None:
    tokens = [TokenLogprobs(token_id=65, logprob=-3.0, rank=3, top=((200, -0.5), (201, -1.0)))]
    found = completion_logprobs(tokens, TokenTexts(HalfCharacterTokenizer()), 7)
    assert found["top_logprobs"] == [{"\ufffd": -0.5, "A": -3.0}]
    assert found["text_offset"] == [7]
    bare = [TokenLogprobs(token_id=65, logprob=float("-inf"), rank=1)]
    assert completion_logprobs(bare, TokenTexts(HalfCharacterTokenizer()), 0) == {
        "tokens": ["A"],
        "token_logprobs": [-9999.0],
        "top_logprobs": None,
        "text_offset": [0],
    }
