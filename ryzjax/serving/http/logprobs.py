"""Log-probabilities as the two OpenAI routes spell them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import TypedDict

from ryzjax.serving.http.frontend_protocol import ChatTokenizer
from ryzjax.serving.request import TokenLogprobs

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
    """The text of single tokens, special ones included, remembered: each token may name twenty alternatives."""

    def __init__(self, tokenizer: ChatTokenizer):
        self._decode = lru_cache(_CACHED_TOKENS)(
            lambda token_id: tokenizer.decode([token_id], skip_special_tokens=False)
        )
        self._ordinary = lru_cache(_CACHED_TOKENS)(
            lambda token_id: tokenizer.decode([token_id], skip_special_tokens=True)
        )

    def __getitem__(self, token_id: int) -> str:
        return self._decode(token_id)

    def width(self, token_id: int, *, skip_special_tokens: bool) -> int:
        """Characters the token takes in a text, which may leave special tokens out."""
        return len(self._ordinary(token_id) if skip_special_tokens else self[token_id])


def completion_logprobs(
    tokens: Sequence[TokenLogprobs],
    texts: TokenTexts,
    start_offset: int,
    *,
    first_token_id: int | None = None,
    skip_special_tokens: bool = False,
) -> CompletionLogprobs:
    """Logprobs of tokens whose text starts `start_offset` characters into the choice.

    Args:
      first_token_id: the first token of an echoed prompt, ahead of the others.
      skip_special_tokens: the choice's text has none, so they take no place in its offsets.
    """
    found = CompletionLogprobs(tokens=[], token_logprobs=[], top_logprobs=None, text_offset=[])
    alternatives: list[dict[str, float] | None] = []
    if first_token_id is not None:
        found["tokens"].append(texts[first_token_id])
        found["token_logprobs"].append(None)
        found["text_offset"].append(start_offset)
        start_offset += texts.width(first_token_id, skip_special_tokens=skip_special_tokens)
        alternatives.append(None)
    for token in tokens:
        text = texts[token.token_id]
        found["tokens"].append(text)
        found["token_logprobs"].append(_finite(token.logprob))
        found["text_offset"].append(start_offset)
        start_offset += texts.width(token.token_id, skip_special_tokens=skip_special_tokens)
        # Tokens that are parts of one character may share a text: the likelier one keeps the place.
        top: dict[str, float] = {}
        for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
            top.setdefault(texts[token_id], _finite(logprob))
        alternatives.append(top)
    if any(token.top for token in tokens):
        found["top_logprobs"] = alternatives
    return found


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
