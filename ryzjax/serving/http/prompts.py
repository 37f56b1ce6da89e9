"""Encodes and decodes the prompts of a request, in pieces on worker threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from ryzjax.errors import ContextLengthError, RequestError
from ryzjax.serving.frontend.protocol import ChatTokenizer
from ryzjax.serving.http.context import ServerContext

__all__ = ["decode_prompts", "encode_messages", "encode_prompts"]

T = TypeVar("T")

Prompt = str | list[int]

_PIECE_SIZE = 16 * 1024


async def encode_prompts(
    context: ServerContext,
    prompts: Sequence[Prompt],
    *,
    field: str,
    add_special_tokens: bool,
    remedy: str = "shorten it",
) -> list[list[int]]:
    """Returns the token ids of prompts, some of which may already be token ids.

    Args:
      context: The state of the server.
      prompts: Texts or token ids.
      field: The request field of the prompts, which errors name.
      add_special_tokens: Whether to add the special tokens that the model expects around a text, such as BOS.
      remedy: What errors advise for a text that is too long.

    Raises:
      ContextLengthError: A text is too long for the context. If its number of characters shows this, nothing is
        tokenized.
      RequestError: A text is not valid Unicode.
    """
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            what = f"{field} {number}" if len(prompts) > 1 else "the prompt"
            context.limits.check_text(what, len(prompt), param=field)

    tokenizer = context.engine.tokenizer

    max_tokens = context.limits.max_context_tokens

    def encode(prompt: Prompt) -> list[int]:
        if not isinstance(prompt, str):
            return prompt
        ids = tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
        if len(ids) > max_tokens:  # checked here, so that the prompts after it are not encoded in vain
            what = "the prompt" if len(prompts) == 1 else f"{field} {prompts.index(prompt)}"
            raise ContextLengthError.of_prompt(len(ids), max_tokens, what=what, remedy=remedy, param=field)
        return ids

    return await _in_pieces(context, encode, prompts)


async def encode_messages(
    context: ServerContext, messages: list[dict[str, str]], *, add_generation_prompt: bool
) -> list[int]:
    """Returns the token ids of a conversation.

    Raises:
      ContextLengthError: The messages have too many characters to fit the context.
      RequestError: The chat template refuses the messages, or the model has none.
    """
    size = sum(len(message["content"]) + len(message.get("name", "")) for message in messages)
    context.limits.check_text("the prompt", size, param="messages")
    render = partial(
        context.engine.tokenizer.apply_chat_template, messages, add_generation_prompt=add_generation_prompt
    )
    # A template runs in Python, so the number of messages costs time too.
    return await context.workers.run(render, size=size + 256 * len(messages))


async def decode_prompts(context: ServerContext, prompts: Sequence[Prompt], *, skip_special_tokens: bool) -> list[str]:
    """Returns the prompts as texts. Token ids are decoded.

    Raises:
      RequestError: A token id is invalid.
    """
    tokenizer: ChatTokenizer = context.engine.tokenizer

    def decode(prompt: Prompt) -> str:
        return prompt if isinstance(prompt, str) else tokenizer.decode(prompt, skip_special_tokens=skip_special_tokens)

    try:
        return await _in_pieces(context, decode, prompts)
    except RequestError as error:
        raise RequestError(str(error), param="prompt") from error


async def _in_pieces(context: ServerContext, work: Callable[[Prompt], T], prompts: Sequence[Prompt]) -> list[T]:
    """Applies `work` to each prompt, in pieces of about 16 KiB of prompts."""
    total_size = sum(map(len, prompts))
    done: list[T] = []
    for piece in _pieces(prompts):
        size = min(total_size, max(sum(map(len, piece)), _PIECE_SIZE))
        done += await context.workers.run(partial(_map, work, piece), size=size)
    return done


def _map(work: Callable[[Prompt], T], prompts: Sequence[Prompt]) -> list[T]:
    return [work(prompt) for prompt in prompts]


def _pieces(prompts: Sequence[Prompt]) -> Iterator[Sequence[Prompt]]:
    start = size = 0
    for end, prompt in enumerate(prompts):
        size += len(prompt)
        if size >= _PIECE_SIZE:
            yield prompts[start : end + 1]
            start, size = end + 1, 0
    if start < len(prompts):
        yield prompts[start:]
