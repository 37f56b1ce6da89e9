"""A deterministic engine without a model. It repeats the prompt backwards, over and over."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import numpy as np

from ryzjax.errors import (
    AdapterConflictError,
    AdapterNotFoundError,
    CheckpointError,
    ContextLengthError,
    EngineFailedError,
    EngineStoppedError,
    QueueFullError,
    RequestError,
)
from ryzjax.lora import Adapter
from ryzjax.serving.frontend.embedding import check_embedding, finish_embedding
from ryzjax.serving.frontend.sampling_defaults import SamplingDefaults
from ryzjax.serving.messages.adapter import ServedAdapter
from ryzjax.serving.messages.request import (
    CompletionOutput,
    EmbeddingOutput,
    FinishReason,
    Pooling,
    RequestOutput,
    StreamDelta,
    TokenLogprobs,
)
from ryzjax.serving.messages.sampling_params import SamplingParams

VOCAB = 512
CONTEXT = 256
BOS = 256
HIDDEN = 6


class FakeTokenizer:
    """A tokenizer with one token per UTF-8 byte. BOS is 256."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [BOS] * add_special_tokens + list(text.encode())

    def max_chars(self, num_tokens: int) -> int:
        return num_tokens

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        if min(ids, default=0) < 0:  # like the real engine
            raise RequestError(f"token ids hold a value that is not one: {min(ids)}", param="tokens")
        special = "" if skip_special_tokens else "<s>"
        return "".join(special if i >= 256 else bytes([i]).decode("latin-1") for i in ids)

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tools: None = None, add_generation_prompt: bool = True
    ) -> list[int]:
        text = "".join(f"{message['role']}:{message['content']}\n" for message in messages)
        return self.encode(text + "assistant:" * add_generation_prompt)


class FakeEngine:
    """Implements EngineFrontend. Prompts that contain these words misbehave:

    HOLD     gives one token, then waits until `release` or an abort
    WEDGE    waits before its first token
    FULL     QueueFullError;  STOPPED  EngineStoppedError;  FAILED  EngineFailedError, with a secret
    BUG      a RuntimeError with a secret
    FAILMID  finish_reason "error" after two tokens;  BUGMID  a RuntimeError after two tokens
    ABORTMID finish_reason "abort" after two tokens
    """

    def __init__(self) -> None:
        self.tokenizer = FakeTokenizer()
        self.model_name = "fake"
        self.max_context_tokens = CONTEXT
        self.max_open_sequences = 288
        self.certificate: dict[str, object] | None = None
        self.default_sampling: SamplingDefaults = {}
        self.is_ready = True
        self.is_healthy = True
        self.running: set[str] = set()
        self.started: list[str] = []
        self.aborted: list[str] = []
        self.most_running = 0
        self.params: list[SamplingParams] = []
        self.drained_with_s: float | None = None
        self.released = False
        self.drain_reasons: list[str] = []
        self.ends_on_drain = False
        self.stopped = False
        self.adapters: list[ServedAdapter] = []
        self.loaded: list[tuple[str, dict[str, bytes], bool]] = []
        self.ran_with: list[str | None] = []

    def load_adapter(
        self, name: str, source: Adapter | str | Path, *, replace: bool = False, root: str | None = None
    ) -> ServedAdapter:
        """Accepts any folder whose config says "good", and remembers the files that it saw."""
        assert isinstance(source, Path)
        files = {path.name: path.read_bytes() for path in source.iterdir()}
        if b"good" not in files.get("adapter_config.json", b""):
            raise CheckpointError(f"{source / 'adapter_config.json'} is missing or bad")
        if not replace and any(adapter.name == name for adapter in self.adapters):
            raise AdapterConflictError(f"the lora adapter {name!r} has already been loaded", param="lora_name")
        adapter = ServedAdapter(
            name=name,
            version=len(self.loaded) + 1,
            rank=8,
            root=root or str(source),
            base_model=None,
            created_s=1,
            values=(),
            scales=(),
        )
        self.loaded.append((name, files, replace))
        self.adapters = [other for other in self.adapters if other.name != name] + [adapter]
        return adapter

    def unload_adapter(self, name: str) -> None:
        if all(adapter.name != name for adapter in self.adapters):
            raise AdapterNotFoundError(name)
        self.adapters = [adapter for adapter in self.adapters if adapter.name != name]

    def release(self) -> None:
        self.released = True

    async def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        adapter: str | None = None,
    ) -> AsyncGenerator[StreamDelta, None]:
        self.ran_with.append(adapter)
        assert not isinstance(prompt, str) and request_id is not None and request_id not in self.running
        text = self._validated(prompt, params)
        self.running.add(request_id)
        self.started.append(request_id)
        self.params.append(params)
        whole = False
        try:
            while "WEDGE" in text and not self.released:
                if self.stopped:
                    raise EngineStoppedError(self.drain_reasons[-1])
                await asyncio.sleep(0.001)
            if params.prompt_logprobs is not None:
                scored = [None, *(self._logprobs(token, params.prompt_logprobs) for token in prompt[1:])]
                yield StreamDelta(index=0, text="", token_ids=(), prompt_logprobs=tuple(scored))
            if params.max_tokens == 0:
                yield StreamDelta(index=0, text="", token_ids=(), finish_reason="length")
            tokens = reply_tokens(prompt, CONTEXT - len(prompt) if params.max_tokens is None else params.max_tokens)
            for position, token in enumerate(tokens):
                await asyncio.sleep(0)
                last = position == len(tokens) - 1
                if position == 1 and "BUGMID" in text:
                    raise RuntimeError("secret-detail")
                while position == 1 and "HOLD" in text and not self.released:
                    await asyncio.sleep(0.001)
                reason: FinishReason | None = "length" if last else None
                if position == 1 and "FAILMID" in text:
                    reason = "error"
                if position == 1 and "ABORTMID" in text:
                    reason = "abort"
                for index in range(params.n):
                    yield StreamDelta(
                        index=index,
                        text=self.tokenizer.decode([token]),
                        token_ids=(token,),
                        logprobs=None if params.logprobs is None else (self._logprobs(token, params.logprobs),),
                        finish_reason=reason,
                    )
                if reason in ("error", "abort"):
                    break
            whole = True
        finally:
            self.running.discard(request_id)
            if not whole:
                self.aborted.append(request_id)

    def _validated(self, prompt: Sequence[int], params: SamplingParams) -> str:
        for token in prompt:
            if not 0 <= token < VOCAB:
                raise RequestError(f"token id {token} is outside the vocabulary of {VOCAB}", param="prompt")
        if len(prompt) + (1 if params.max_tokens is None else params.max_tokens) > CONTEXT:
            raise ContextLengthError(f"{len(prompt)} + {params.max_tokens} tokens do not fit {CONTEXT}", param="prompt")
        text = self.tokenizer.decode(prompt)
        if "FULL" in text:
            raise QueueFullError("the queue is full", retry_after_s=7)
        if "FAILED" in text:
            raise EngineFailedError("the engine failed: secret-detail in /srv/secret")
        if "STOPPED" in text:
            raise EngineStoppedError("the engine is stopped")
        if "BUG" in text and "BUGMID" not in text:
            raise RuntimeError("secret-detail")
        return text

    def _logprobs(self, token: int, top: int) -> TokenLogprobs:
        alternatives = tuple(((token + i) % 256, -0.5 - i if i < 2 else float("-inf")) for i in range(top))
        return TokenLogprobs(token_id=token, logprob=-0.5, rank=1, top=alternatives)

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        adapter: str | None = None,
    ) -> RequestOutput:
        assert request_id is not None
        outputs = [CompletionOutput(index=index) for index in range(params.n)]
        prompt_logprobs = None
        async for delta in self.stream(prompt, params, request_id=request_id, adapter=adapter):
            if delta.prompt_logprobs is not None:
                prompt_logprobs = list(delta.prompt_logprobs)
            output = outputs[delta.index]
            output.text += delta.text
            output.token_ids.extend(delta.token_ids)
            if delta.logprobs is not None:
                output.logprobs = [*(output.logprobs or []), *delta.logprobs]
            output.finish_reason = delta.finish_reason
        return RequestOutput(
            request_id=request_id,
            prompt=None,
            prompt_token_ids=[*prompt],  # type: ignore[list-item]
            outputs=outputs,
            prompt_logprobs=prompt_logprobs,
        )

    async def embed(
        self,
        prompt: str | Sequence[int],
        *,
        pooling: Pooling | None = None,
        dimensions: int | None = None,
        normalize: bool = True,
        request_id: str | None = None,
        adapter: str | None = None,
    ) -> EmbeddingOutput:
        self.ran_with.append(adapter)
        assert not isinstance(prompt, str) and request_id is not None and request_id not in self.running
        check_embedding(pooling=pooling or "last", dimensions=dimensions, hidden_size=HIDDEN)
        text = self._validated(prompt, SamplingParams(max_tokens=0, prompt_logprobs=0))
        self.running.add(request_id)
        self.started.append(request_id)
        self.most_running = max(self.most_running, len(self.running))
        whole = False
        try:
            await asyncio.sleep(0.001)
            while "WEDGE" in text and not self.released:
                await asyncio.sleep(0.001)
            if "FAILMID" in text:
                raise EngineStoppedError("the engine failed")
            whole = True
        finally:
            self.running.discard(request_id)
            if not whole:
                self.aborted.append(request_id)
        vector = finish_embedding(raw_vector(prompt, pooling or "last"), dimensions=dimensions, normalize=normalize)
        return EmbeddingOutput(
            request_id=request_id,
            prompt=None,
            prompt_token_ids=[*prompt],  # type: ignore[list-item]
            embedding=vector,
        )

    async def drain(self, timeout_s: float, *, reason: str = "") -> None:
        self.drained_with_s = timeout_s
        self.drain_reasons.append(reason)
        self.stopped = self.ends_on_drain
        self.released = self.released or (bool(self.running) and not self.stopped)


def raw_vector(prompt: Sequence[int], pooling: Pooling) -> np.ndarray:
    """Returns what the fake engine pools: powers of a token, or their mean."""
    tokens = np.asarray(prompt[-1:] if pooling == "last" else prompt, np.float32)
    return np.mean((1 + tokens[:, None] / 100) ** np.arange(HIDDEN), axis=0, dtype=np.float32)


def reply_tokens(prompt: Sequence[int], count: int) -> list[int]:
    """Returns the fake engine's answer: the prompt's bytes backwards, repeated."""
    backwards = [token for token in reversed(prompt) if token < 256] or [0]
    return [backwards[i % len(backwards)] for i in range(count)]


def reply(prompt: str, count: int) -> str:
    """Returns the text of `reply_tokens` for an ASCII prompt."""
    return bytes(reply_tokens(list(prompt.encode()), count)).decode()
