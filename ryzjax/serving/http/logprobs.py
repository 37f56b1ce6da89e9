"""Log-probabilities as the two OpenAI routes spell them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypedDict

from ryzjax.serving.http.frontend_protocol import ChatTokenizer
from ryzjax.serving.messages.request import TokenLogprobs

__all__ = ["ChatLogprobs", "CompletionLogprobs", "TokenTexts", "chat_logprobs", "completion_logprobs"]

# JSON has no -inf; a token that a ban made impossible gets what other servers give it.
_LOWEST_LOGPROB = -9999.0
_CACHED_TOKENS = 65_536


class CompletionLogprobs(TypedDict):
    """`logprobs` of a /v1/completions choice; offsets are in characters. A prompt's first token has none: null."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class _Alternative(TypedDict):
    token: str
    logprob: float
    bytes: list[int] | None


class _ChatToken(_Alternative):
    top_logprobs: list[_Alternative]


class ChatLogprobs(TypedDict):
    """`logprobs` of a /v1/chat/completions choice."""

    content: list[_ChatToken]


class TokenTexts:
    """The text of single tokens, special ones included, remembered: each token may name twenty alternatives.

    It is the text a token has after another one: alone, SentencePiece drops the space a word begins with, and
    `tokens` would neither add up to the text nor tell " to" from "to".
    """

    def __init__(self, tokenizer: ChatTokenizer):
        before = tokenizer.encode("a", add_special_tokens=False)[-1:]

        def decode(token_id: int, skip_special_tokens: bool, is_first: bool) -> str:
            context = [] if is_first else before
            text = tokenizer.decode([*context, token_id], skip_special_tokens=skip_special_tokens)
            return text[len(tokenizer.decode(context, skip_special_tokens=False)) :]

        self._decode = lru_cache(_CACHED_TOKENS)(decode)

    def __getitem__(self, token_id: int) -> str:
        return self._decode(token_id, False, False)

    def at_start(self, token_id: int) -> str:
        """The text of a token that begins a text."""
        return self._decode(token_id, False, True)

    def width(self, token_id: int, *, skip_special_tokens: bool, is_first: bool = False) -> int:
        """Characters the token takes in a text, which may leave special tokens out."""
        return len(self._decode(token_id, skip_special_tokens, is_first))


def completion_logprobs(
    tokens: Sequence[TokenLogprobs],
    texts: TokenTexts,
    start_offset: int,
    *,
    first_token_id: int | None = None,
    is_echo: bool = False,
    with_top: bool = False,
    skip_special_tokens: bool = False,
) -> tuple[CompletionLogprobs, int]:
    """Logprobs of tokens whose text starts `start_offset` characters into the choice, and where it ends.

    Args:
      first_token_id: the first token of an echoed prompt, ahead of the others.
      is_echo: the text begins with a prompt whose first tokens came in an earlier call.
      with_top: give `top_logprobs` even where none of these tokens has alternatives.
      skip_special_tokens: the choice's text has none, so they take no place in its offsets.
    """
    found = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=None, text_offset=[])
    alternatives: list[dict[str, float] | None] = []
    if first_token_id is not None:
        found["tokens"].append(texts.at_start(first_token_id))
        found["token_logprobs"].append(None)
        found["text_offset"].append(start_offset)
        start_offset += texts.width(first_token_id, skip_special_tokens=skip_special_tokens, is_first=True)
        alternatives.append(None)
    for token in tokens:
        # In an echoed prompt, what follows tokens that the text leaves out begins the text.
        is_first = (is_echo or first_token_id is not None) and not start_offset
        # A token has one spelling at a position, chosen or not: clients look the chosen one up among the likeliest.
        spell = texts.at_start if is_first else texts.__getitem__
        found["tokens"].append(spell(token.token_id))
        found["token_logprobs"].append(_finite(token.logprob))
        found["text_offset"].append(start_offset)
        start_offset += texts.width(token.token_id, skip_special_tokens=skip_special_tokens, is_first=is_first)
        # Tokens may share a text (parts of one character; with and without a space, where a text begins): the
        # likelier one keeps the place.
        top: dict[str, float] = {}
        for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
            top.setdefault(spell(token_id), _finite(logprob))
        alternatives.append(top)
    if with_top or any(token.top for token in tokens):
        found["top_logprobs"] = alternatives
    return found, start_offset


def chat_logprobs(tokens: Sequence[TokenLogprobs], texts: TokenTexts) -> ChatLogprobs:
    """Logprobs of a chat completion's tokens."""
    content: list[_ChatToken] = []
    for token in tokens:
        chosen = _alternative(token.token_id, token.logprob, texts)
        top = [_alternative(token_id, logprob, texts) for token_id, logprob in token.top]
        content.append({**chosen, "top_logprobs": top})
    return {"content": content}


def _alternative(token_id: int, logprob: float, texts: TokenTexts) -> _Alternative:
    text = texts[token_id]
    # A token that is part of a character has no text of its own, and wrong bytes are worse than none.
    utf8 = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": _finite(logprob), "bytes": utf8}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LOWEST_LOGPROB
