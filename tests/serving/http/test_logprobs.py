from __future__ import annotations

from collections.abc import Sequence

from ryzjax.serving.http.openai.logprobs import chat_logprobs, completion_logprobs
from ryzjax.serving.http.token_texts import TokenTexts
from ryzjax.serving.messages.request import TokenLogprobs
from tests.serving.http.fake_engine import FakeTokenizer


class HalfCharacterTokenizer(FakeTokenizer):
    """A tokenizer whose tokens from 128 on are halves of characters."""

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
    found, end = completion_logprobs(tokens, TokenTexts(HalfCharacterTokenizer()), 7)
    assert found["top_logprobs"] == [{"\ufffd": -0.5, "A": -3.0}]
    assert (found["text_offset"], end) == ([7], 8)
    bare = [TokenLogprobs(token_id=65, logprob=float("-inf"), rank=1)]
    assert completion_logprobs(bare, TokenTexts(HalfCharacterTokenizer()), 0)[0] == {
        "tokens": ["A"],
        "token_logprobs": [-9999.0],
        "top_logprobs": None,
        "text_offset": [0],
    }


class WordTokenizer(FakeTokenizer):
    """A tokenizer in which a token is a word with the space before it.

    As with SentencePiece, that space is dropped at the start of a text.
    """

    words = ("<s>", " a", " to", "to", ".")

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [self.words.index(" " + text)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        text = "".join(self.words[token] for token in ids if token or not skip_special_tokens)
        return text.removeprefix(" ")


def entry(token_id: int, top: int) -> TokenLogprobs:
    return TokenLogprobs(token_id=token_id, logprob=-1.0, rank=2, top=((top, -0.5),))


def test_words_keep_their_space_but_at_the_start_of_a_text() -> None:
    texts = TokenTexts(WordTokenizer())
    found, end = completion_logprobs([entry(2, 3), entry(3, 2)], texts, 4)
    assert (found["tokens"], found["text_offset"], end) == ([" to", "to"], [4, 7], 9)
    assert found["top_logprobs"] == [{"to": -0.5, " to": -1.0}, {" to": -0.5, "to": -1.0}]
    # The echoed prompt is "to to.". Its text has neither <s> nor the first space.
    tokens = [entry(2, 1), entry(2, 1), entry(4, 1)]
    found, end = completion_logprobs(tokens, texts, 0, first_token_id=0, skip_special_tokens=True)
    assert (found["tokens"], found["text_offset"], end) == (["<s>", "to", " to", "."], [0, 0, 2, 5], 6)
    found, end = completion_logprobs(tokens[1:], texts, 0, first_token_id=2, skip_special_tokens=True)
    assert (found["tokens"], found["text_offset"], end) == (["to", " to", "."], [0, 2, 5], 6)


def test_an_alternative_is_spelt_as_the_token_itself_at_the_start_of_an_echo() -> None:
    texts = TokenTexts(WordTokenizer())
    likeliest = TokenLogprobs(token_id=2, logprob=-0.5, rank=1, top=((2, -0.5), (1, -1.5), (4, -2.0)))
    found, _ = completion_logprobs([likeliest, likeliest], texts, 0, first_token_id=0, skip_special_tokens=True)
    assert found["tokens"] == ["<s>", "to", " to"]
    start = {"to": -0.5, "a": -1.5, ".": -2.0}
    assert found["top_logprobs"] == [None, start, {" to": -0.5, " a": -1.5, ".": -2.0}]
