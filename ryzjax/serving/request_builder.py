"""RequestBuilder: what callers ask for, checked against the model, becomes the engine's requests."""

from __future__ import annotations

import secrets
import time
from collections.abc import Collection

from ryzjax.errors import ContextLengthError, RequestError
from ryzjax.models.config import ModelConfig
from ryzjax.serving.adapter import ServedAdapter
from ryzjax.serving.request import EngineRequest, Pooling
from ryzjax.serving.sampling_params import SamplingParams

__all__ = ["RequestBuilder"]

_SEED_MASK = 2**64 - 1


class RequestBuilder:
    """Makes requests for one engine.

    Args:
      config: the model's.
      max_context_tokens: longest prompt plus output.
      pooling: of embeddings that name none.
    """

    def __init__(self, config: ModelConfig, *, max_context_tokens: int, pooling: Pooling):
        self._config = config
        self._max_context_tokens = max_context_tokens
        self._pooling: Pooling = pooling

    def completions(
        self,
        token_ids: tuple[int, ...],
        params: SamplingParams,
        request_id: str,
        adapter: ServedAdapter | None = None,
    ) -> list[EngineRequest]:
        """The `n` sequences of one prompt; their ids are `request_id` and a number.

        Raises:
          RequestError: no token, or ids outside the vocabulary.
          ContextLengthError: what must be generated does not fit after the prompt.
        """
        self._check_prompt(token_ids)
        self._check_ids("logit_bias", params.logit_bias)
        self._check_ids("stop_token_ids", params.stop_token_ids)
        room = self._max_context_tokens - len(token_ids)
        fewest = 0 if params.max_tokens == 0 else max(params.min_tokens, 1)
        if room < fewest:
            raise ContextLengthError.of_prompt(len(token_ids), self._max_context_tokens, new_tokens=fewest)
        eos = () if params.ignore_eos else self._config.eos_token_ids
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
                # The completions share their prompt: it is scored once.
                prompt_logprobs=params.prompt_logprobs if i == 0 else None,
                adapter=adapter,
            )
            for i in range(params.n)
        ]

    def embedding(
        self,
        token_ids: tuple[int, ...],
        pooling: Pooling | None,
        request_id: str,
        adapter: ServedAdapter | None = None,
    ) -> EngineRequest:
        """The sequence that becomes a vector.

        Raises:
          RequestError: no token, or ids outside the vocabulary.
          ContextLengthError: a prompt longer than the context.
        """
        self._check_prompt(token_ids)
        if len(token_ids) > self._max_context_tokens:
            raise ContextLengthError.of_prompt(
                len(token_ids), self._max_context_tokens, remedy="shorten it, or split it and embed the parts"
            )
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

    def _check_prompt(self, token_ids: tuple[int, ...]) -> None:
        if not token_ids:
            raise RequestError("the prompt is empty; expected at least one token", param="prompt")
        self._check_ids("prompt", token_ids)

    def _check_ids(self, name: str, ids: Collection[int]) -> None:
        vocab = self._config.vocab_size
        lowest, highest = min(ids, default=0), max(ids, default=0)
        if lowest < 0 or highest >= vocab:
            bad = lowest if lowest < 0 else highest
            raise RequestError(
                f"{name} contains token id {bad}; expected 0 to {vocab - 1}, the model's vocabulary", param=name
            )
