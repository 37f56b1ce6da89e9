"""What the HTTP layer needs of an engine: `ryzjax.serving.frontend.async_engine.AsyncEngine`, or a fake in tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from ryzjax.serving.frontend.sampling_defaults import SamplingDefaults
from ryzjax.serving.messages.adapter import ServedAdapter
from ryzjax.serving.messages.request import EmbeddingOutput, Pooling, RequestOutput, StreamDelta
from ryzjax.serving.messages.sampling_params import SamplingParams

if TYPE_CHECKING:
    from ryzjax.lora import Adapter

__all__ = ["ChatTokenizer", "EngineFrontend"]


class ChatTokenizer(Protocol):
    """The tokenizer calls that the HTTP layer makes, from any number of threads."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`."""
        ...

    def max_chars(self, num_tokens: int) -> int:
        """Most characters of a text of so many tokens: a longer text has more tokens."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of `ids`."""
        ...

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tools: None = None, add_generation_prompt: bool = True
    ) -> list[int]:
        """Token ids of a conversation. Raises RequestError where the template refuses it or there is none."""
        ...


class EngineFrontend(Protocol):
    """The asyncio face of an engine."""

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The model's tokenizer."""
        ...

    @property
    def model_name(self) -> str:
        """What the model is called when the server gives it no other name."""
        ...

    @property
    def certificate(self) -> Mapping[str, object] | None:
        """What its quantization cost, in short; None where it has no certificate."""
        ...

    @property
    def default_sampling(self) -> SamplingDefaults:
        """The sampling settings of requests that do not name their own, as far as the model gives them."""
        ...

    @property
    def adapters(self) -> Sequence[ServedAdapter]:
        """The adapters that requests may name."""
        ...

    def load_adapter(
        self, name: str, source: Adapter | str | Path, *, replace: bool = False, root: str | None = None
    ) -> ServedAdapter:
        """Takes an adapter in, while requests run; from any thread, which it holds up.

        Raises ConfigError, CheckpointError (both: it is not one for this model), AdapterConflictError.
        """
        ...

    def unload_adapter(self, name: str) -> None:
        """Takes no more requests for an adapter. Raises AdapterNotFoundError, and ConfigError where none are served."""
        ...

    @property
    def max_context_tokens(self) -> int:
        """Most tokens of prompt and output together."""
        ...

    @property
    def max_open_sequences(self) -> int:
        """Most sequences that wait or run at once; more are refused with QueueFullError."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether it takes requests now."""
        ...

    @property
    def is_healthy(self) -> bool:
        """False once the engine thread has failed."""
        ...

    def stream(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        adapter: str | None = None,
    ) -> AsyncIterator[StreamDelta]:
        """Runs one prompt. Closing or cancelling the iterator aborts the request and frees its pages.

        Raises (before the first delta): AdapterNotFoundError, RequestError (token ids outside the vocabulary included),
        ContextLengthError, QueueFullError, EngineStoppedError.
        """
        ...

    async def generate(
        self,
        prompt: str | Sequence[int],
        params: SamplingParams,
        *,
        request_id: str | None = None,
        adapter: str | None = None,
    ) -> RequestOutput:
        """Runs one prompt to its end. Cancelling aborts it. Raises as `stream` does."""
        ...

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
        """One prompt's vector. Cancelling aborts it. Raises as `stream` does."""
        ...

    async def drain(self, timeout_s: float, *, reason: str = ...) -> None:
        """Takes no new request, lets the running ones finish, and ends what is left after `timeout_s` with `reason`."""
        ...
