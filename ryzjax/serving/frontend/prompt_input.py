"""The prompts and conversations that callers of `LLM` give: their types, and the way from them to token ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TypedDict

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import RequestError
from ryzjax.serving.frontend.request_builder import as_token_ids

__all__ = [
    "Message",
    "PromptLike",
    "TokenPrompt",
    "as_conversations",
    "naming_prompt",
    "text_or_token_ids",
    "tokenize_prompts",
]


class TokenPrompt(TypedDict):
    """A prompt given as token ids."""

    prompt_token_ids: list[int]


PromptLike = str | TokenPrompt
Message = Mapping[str, object]


def text_or_token_ids(prompt: PromptLike) -> str | list[int]:
    """Returns the text or the token ids of a prompt. Raises RequestError for any other value."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Mapping) and isinstance(prompt.get("prompt_token_ids"), (list, tuple)):
        return list(prompt["prompt_token_ids"])
    raise RequestError(f"prompt={prompt!r}; expected a string or {{'prompt_token_ids': [...]}}", param="prompt")


def tokenize_prompts(
    tokenizer: Tokenizer, prompts: PromptLike | Sequence[PromptLike]
) -> list[tuple[str | None, tuple[int, ...]]]:
    """Returns the text and the token ids of each prompt; the text is None if token ids were given.

    Raises:
      RequestError: A prompt is neither a text nor token ids, or its text cannot be tokenized.
    """
    many = [prompts] if isinstance(prompts, (str, Mapping)) else list(prompts)
    given: list[str | list[int]] = []
    for i, prompt in enumerate(many):
        with naming_prompt("prompts", i, len(many)):
            given.append(text_or_token_ids(prompt))
    texts = [prompt for prompt in given if isinstance(prompt, str)]
    try:
        encoded = iter(tokenizer.encode_batch(texts))
    except RequestError:
        # The batch does not say which text is at fault, so each one is encoded alone.
        for i, prompt in enumerate(given):
            with naming_prompt("prompts", i, len(many)):
                if isinstance(prompt, str):
                    tokenizer.encode(prompt)
        raise
    return [
        (prompt, tuple(next(encoded))) if isinstance(prompt, str) else (None, as_token_ids(prompt)) for prompt in given
    ]


@contextmanager
def naming_prompt(what: str, index: int, count: int) -> Iterator[None]:
    """Prefixes the message of a RequestError with the index of the prompt, if there are several prompts."""
    try:
        yield
    except RequestError as error:
        if count > 1:
            error.args = (f"{what}[{index}]: {error}",)
        raise


def as_conversations(messages: Sequence[Message] | Sequence[Sequence[Message]]) -> list[list[Message]]:
    """Returns one conversation, or several, as a list of conversations. Raises RequestError for anything else."""
    single: list[Message] = []
    several: list[list[Message]] = []
    for item in messages:
        if isinstance(item, Mapping):
            single.append(item)
        else:
            several.append(list(item))
    if bool(single) == bool(several):
        raise RequestError("messages is empty or mixed; expected messages, or lists of messages", param="messages")
    return several or [single]
