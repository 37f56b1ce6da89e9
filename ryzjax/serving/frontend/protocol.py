"""EngineFrontend: what a server needs of an engine. `AsyncEngine` implements it, and so does a fake in tests.

It knows nothing of HTTP, so servers of other protocols can use it too.
"""

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
    """The tokenizer methods that servers call, from any number of threads."""

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of `text`."""
        ...

    def max_chars(self, num_tokens: int) -> int:
        """Returns the largest number of characters that `num_tokens` tokens can have."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of `ids`."""
        ...

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, tools: None = None, add_generation_prompt: bool = True
    ) -> list[int]:
        """Returns the token ids of a conversation.

        Raises:
          RequestError: The chat template refuses the conversation, or the model has none.
        """
        ...


class EngineFrontend(Protocol):
    """An engine for callers on an event loop."""

    @property
    def tokenizer(self) -> ChatTokenizer:
        """The model's tokenizer."""
        ...

    @property
    def model_name(self) -> str:
        """The name of the model, unless the server gives it another one."""
        ...

    @property
    def certificate(self) -> Mapping[str, object] | None:
        """A summary of the model's quantization certificate; None if it has none."""
        ...

    @property
    def default_sampling(self) -> SamplingDefaults:
        """The model's own sampling settings, for requests that do not name theirs."""
        ...

    @property
    def adapters(self) -> Sequence[ServedAdapter]:
        """The adapters that requests may name."""
        ...

    def load_adapter(
        self, name: str, source: Adapter | str | Path, *, replace: bool = False, root: str | None = None
    ) -> ServedAdapter:
        """Loads an adapter while requests run. Blocks its thread, which may be any thread.

        Raises:
          ConfigError: No adapters are served, or this one does not fit the model.
          CheckpointError: The directory holds no adapter, or a damaged one.
          AdapterConflictError: The name is taken, or too many adapters are loaded.
        """
        ...

    def unload_adapter(self, name: str) -> None:
        """Removes an adapter. Raises AdapterNotFoundError, or ConfigError if no adapters are served."""
        ...

    @property
    def max_context_tokens(self) -> int:
        """The largest number of tokens of a prompt and its output together."""
        ...

    @property
    def max_open_sequences(self) -> int:
        """The largest number of sequences that wait or run at once. More are refused with QueueFullError."""
        ...

    @property
    def is_ready(self) -> bool:
        """Whether the engine accepts requests now."""
        ...

    @property
    def is_healthy(self) -> bool:
        """Whether the engine's thread runs. False once it has failed."""
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

        All errors are raised before the first delta.

        Raises:
          AdapterNotFoundError: No adapter has this name.
          RequestError: The request is invalid, for example because of token ids outside the vocabulary.
          ContextLengthError: The prompt is too long.
          QueueFullError: Too many requests are waiting.
          EngineStoppedError: The engine is draining, was stopped or has failed.
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
        """Runs one prompt to its end. Cancelling aborts it. Raises the errors of `stream`."""
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
        """Returns the vector of one prompt. Cancelling aborts it. Raises the errors of `stream`."""
        ...

    async def drain(self, timeout_s: float, *, reason: str = ...) -> None:
        """Refuses new requests and lets open ones finish. Those left after `timeout_s` seconds fail with `reason`."""
        ...
