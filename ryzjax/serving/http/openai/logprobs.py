"""The `logprobs` objects of /v1/completions and /v1/chat/completions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypedDict

from ryzjax.serving.http.token_texts import TokenTexts
from ryzjax.serving.messages.request import TokenLogprobs

__all__ = ["ChatLogprobs", "CompletionLogprobs", "chat_logprobs", "completion_logprobs"]

# JSON has no -inf. A banned token gets the value that other servers use for it.
_LOWEST_LOGPROB = -9999.0


class CompletionLogprobs(TypedDict):
    """The `logprobs` of a /v1/completions choice. Offsets are in characters. The first token of a prompt has a null."""

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
    """The `logprobs` of a /v1/chat/completions choice."""

    content: list[_ChatToken]


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
    """Returns the `logprobs` of some consecutive tokens of a choice, and the offset at which their text ends.

    Args:
      tokens: The tokens with their log-probabilities.
      texts: The texts of tokens.
      start_offset: The offset in the choice's text at which the first token starts, in characters.
      first_token_id: The first token of an echoed prompt, which precedes `tokens`; None if there is none.
      is_echo: Whether the text begins with a prompt whose first tokens came in an earlier call.
      with_top: Whether to include `top_logprobs` even if none of these tokens has alternatives.
      skip_special_tokens: Whether the text of the choice omits special tokens, which then have a width of 0.
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
        # In an echoed prompt, the token after omitted special tokens is the first one of the text.
        is_first = (is_echo or first_token_id is not None) and not start_offset
        # The chosen token is spelled like its entry in `top_logprobs`, where clients look it up.
        spell = texts.at_start if is_first else texts.__getitem__
        found["tokens"].append(spell(token.token_id))
        found["token_logprobs"].append(_finite(token.logprob))
        found["text_offset"].append(start_offset)
        start_offset += texts.width(token.token_id, skip_special_tokens=skip_special_tokens, is_first=is_first)
        # Several tokens may have the same text: parts of one character, or, at the start of a text, a word with and
        # without a leading space. The likelier token keeps the entry.
        top: dict[str, float] = {}
        for token_id, logprob in (*token.top, (token.token_id, token.logprob)):
            top.setdefault(spell(token_id), _finite(logprob))
        alternatives.append(top)
    if with_top or any(token.top for token in tokens):
        found["top_logprobs"] = alternatives
    return found, start_offset


def chat_logprobs(tokens: Sequence[TokenLogprobs], texts: TokenTexts) -> ChatLogprobs:
    """Returns the `logprobs` of a chat completion's tokens."""
    content: list[_ChatToken] = []
    for token in tokens:
        chosen = _alternative(token.token_id, token.logprob, texts)
        top = [_alternative(token_id, logprob, texts) for token_id, logprob in token.top]
        content.append({**chosen, "top_logprobs": top})
    return {"content": content}


def _alternative(token_id: int, logprob: float, texts: TokenTexts) -> _Alternative:
    text = texts[token_id]
    # A token that is a part of a character has no text of its own. No bytes are better than wrong bytes.
    utf8 = None if "\ufffd" in text else list(text.encode())
    return {"token": text, "logprob": _finite(logprob), "bytes": utf8}


def _finite(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else _LOWEST_LOGPROB
