"""RequestBuilder: checks prompts and settings against the model, and makes the engine's requests."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection, Iterable

import numpy as np

from ryzjax.errors import ContextLengthError, RequestError
from ryzjax.models.config import ModelConfig
from ryzjax.serving.messages.adapter import ServedAdapter
from ryzjax.serving.messages.request import EngineRequest, Pooling
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["RequestBuilder", "as_token_ids"]

_SEED_MASK = 2**64 - 1


class RequestBuilder:
    """Checks and makes the requests of one engine.

    Args:
      config: The config of the model.
      max_context_tokens: The largest number of tokens of a prompt and its output together.
      max_open: The number of sequences that may wait or run at once.
      pooling: The pooling of embeddings that name none.
    """

    def __init__(self, config: ModelConfig, *, max_context_tokens: int, max_open: int, pooling: Pooling):
        self._vocab_size = config.vocab_size
        # A config may name an end-of-sequence token outside its vocabulary, which no step can choose.
        self._eos_token_ids = tuple(token for token in config.eos_token_ids if 0 <= token < config.vocab_size)
        self._max_context_tokens = max_context_tokens
        self.max_open = max_open
        self._pooling: Pooling = pooling

    def completions(
        self,
        token_ids: tuple[int, ...],
        params: SamplingParams,
        request_id: str,
        adapter: ServedAdapter | None = None,
    ) -> list[EngineRequest]:
        """Returns the requests of the `n` sequences of one prompt. Their ids are `request_id` and a number.

        Raises the errors of `check_completion`.
        """
        room = self.check_completion(token_ids, params)
        eos = () if params.ignore_eos else self._eos_token_ids
        first_seed = secrets.randbits(64) if params.seed is None else params.seed
        return [
            EngineRequest(
                request_id=f"{request_id}-{i}",
                prompt_token_ids=token_ids,
                params=params,
                stop_token_ids=frozenset((*eos, *params.stop_token_ids)),
                max_new_tokens=room if params.max_tokens is None else min(params.max_tokens, room),
                seed=(first_seed + i) & _SEED_MASK,
                arrival_s=time.monotonic(),
                # The completions share their prompt, so it is scored once.
                prompt_logprobs=params.prompt_logprobs if i == 0 else None,
                adapter=adapter,
            )
            for i in range(params.n)
        ]

    def check_completion(self, token_ids: tuple[int, ...], params: SamplingParams) -> int:
        """Checks a prompt and its settings, and returns the number of tokens that fit after the prompt.

        Raises:
          RequestError: The prompt is empty, a token id is outside the vocabulary, or `n` exceeds `max_open`.
          ContextLengthError: The tokens that must be generated do not fit after the prompt.
        """
        self._check_prompt(token_ids)
        self._check_ids("logit_bias", params.logit_bias)
        self._check_ids("stop_token_ids", params.stop_token_ids)
        if params.n > self.max_open:
            raise RequestError(
                f"n={params.n} is more than the {self.max_open} sequences that may be open at once (max_sequences "
                "and max_queue together); lower n, or raise max_queue",
                param="n",
            )
        room = self._max_context_tokens - len(token_ids)
        fewest = 0 if params.max_tokens == 0 else max(params.min_tokens, 1)
        if room < fewest:
            raise ContextLengthError.of_prompt(len(token_ids), self._max_context_tokens, new_tokens=fewest)
        return room

    def embedding(
        self,
        token_ids: tuple[int, ...],
        pooling: Pooling | None,
        request_id: str,
        adapter: ServedAdapter | None = None,
    ) -> EngineRequest:
        """Returns the request of a sequence that becomes a vector.

        Raises the errors of the method `check_embedding`.
        """
        self.check_embedding(token_ids)
        return EngineRequest(
            request_id=request_id,
            prompt_token_ids=token_ids,
            params=SamplingParams(),
            stop_token_ids=frozenset(),
            max_new_tokens=0,
            seed=0,
            arrival_s=time.monotonic(),
            pooling=self._pooling if pooling is None else pooling,
            adapter=adapter,
        )

    def check_embedding(self, token_ids: tuple[int, ...]) -> None:
        """Checks the prompt of an embedding.

        Raises:
          RequestError: The prompt is empty, or a token id is outside the vocabulary.
          ContextLengthError: The prompt is longer than the context.
        """
        self._check_prompt(token_ids)
        if len(token_ids) > self._max_context_tokens:
            raise ContextLengthError.of_prompt(
                len(token_ids), self._max_context_tokens, remedy="shorten it, or split it and embed the parts"
            )

    def _check_prompt(self, token_ids: tuple[int, ...]) -> None:
        if not token_ids:
            raise RequestError("the prompt is empty; expected at least one token", param="prompt")
        self._check_ids("prompt", token_ids)

    def _check_ids(self, name: str, ids: Collection[int]) -> None:
        """Checks ids against the vocabulary. Valid ids are checked without a Python loop."""
        vocab = self._vocab_size
        if not ids or (set(map(type, ids)) == {int} and min(ids) >= 0 and max(ids) < vocab):
            return
        for token in ids:
            # A float or a bool could pass the comparison, and fail later on the engine's thread.
            if type(token) is not int:
                raise RequestError(f"{name} contains {token!r}, which is no token id; expected integers", param=name)
            if not 0 <= token < vocab:
                raise RequestError(
                    f"{name} contains token id {token}; expected 0 to {vocab - 1}, the model's vocabulary", param=name
                )


def as_token_ids(ids: Iterable[int]) -> tuple[int, ...]:
    """Returns token ids with numpy integers converted to Python's. `RequestBuilder` refuses any other value."""
    found = tuple(ids)
    if set(map(type, found)) <= {int}:
        return found
    return tuple(int(token) if isinstance(token, np.integer) else token for token in found)
