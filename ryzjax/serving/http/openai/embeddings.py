"""/v1/embeddings: its request, the run of all inputs of one request, and its answer."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np

from ryzjax.errors import ContextLengthError, RequestError
from ryzjax.serving.frontend.protocol import EngineFrontend
from ryzjax.serving.http.generation import first_error
from ryzjax.serving.http.openai.fields import ApiRequest, Integer, Prompts, prompt_list
from ryzjax.serving.messages.request import Pooling

__all__ = ["TOO_LONG_REMEDY", "EmbeddingRequest", "Embeddings", "embeddings_pieces"]

TOO_LONG_REMEDY = "shorten it, or split it and embed the parts"
"""What errors advise for an input that is longer than the context."""


class EmbeddingRequest(ApiRequest):
    """Body of /v1/embeddings. `pooling`, `normalize` and `add_special_tokens` are extensions of RyzJAX."""

    input: Prompts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Integer | None = None
    pooling: Pooling | None = None
    normalize: bool | None = None
    add_special_tokens: bool | None = None

    def inputs(self) -> list[str | list[int]]:
        """Returns the texts or token ids, one or more. Raises RequestError if there is none or one is empty."""
        inputs = prompt_list(self.input, "input")
        for number, one in enumerate(inputs):
            if not one:
                kind = "an empty string" if isinstance(one, str) else "an empty list"
                raise RequestError(f"input {number} is {kind}; give at least one token", param="input")
        return inputs


class Embeddings:
    """The inputs of one HTTP request and the settings of their embeddings.

    Args:
      engine: The engine that runs the inputs.
      inputs: A list of token ids for each input.
      request: The settings of all inputs.
      concurrency: The number of inputs that run at once, so that a long list does not fill the engine's queue.
      adapter: The name of the adapter to run with; None runs the model alone.

    Raises:
      RequestError: An input has no tokens.
      ContextLengthError: An input is longer than the context. All inputs are checked before any of them starts.
    """

    def __init__(
        self,
        engine: EngineFrontend,
        inputs: Sequence[list[int]],
        request: EmbeddingRequest,
        *,
        concurrency: int,
        adapter: str | None = None,
    ):
        for number, ids in enumerate(inputs):
            if not ids:
                raise RequestError(f"input {number} has no tokens; give at least one", param="input")
            if len(ids) > engine.max_context_tokens:
                raise ContextLengthError.of_prompt(
                    len(ids),
                    engine.max_context_tokens,
                    what=f"input {number}",
                    remedy=TOO_LONG_REMEDY,
                    param="input",
                )
        self._engine = engine
        self._inputs = inputs
        self._request = request
        self._adapter = adapter
        self._slots = asyncio.Semaphore(concurrency)
        self._id = f"embd-{uuid.uuid4().hex}"

    @property
    def prompt_tokens(self) -> int:
        """The number of tokens of all inputs."""
        return sum(map(len, self._inputs))

    async def collect(self) -> list[np.ndarray]:
        """Runs all inputs and returns their vectors in order. If one fails or the call is cancelled, the rest abort."""
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._one(number)) for number in range(len(self._inputs))]
        except* Exception as errors:
            raise first_error(errors) from None
        return [task.result() for task in tasks]

    async def _one(self, number: int) -> np.ndarray:
        request = self._request
        async with self._slots:
            try:
                output = await self._engine.embed(
                    self._inputs[number],
                    pooling=request.pooling,
                    dimensions=request.dimensions,
                    normalize=request.normalize is not False,
                    request_id=f"{self._id}-{number}",
                    adapter=self._adapter,
                )
            except RequestError as error:
                if error.param != "prompt":
                    raise
                # The engine calls an input "prompt".
                raise RequestError(f"input {number}: {error}", param="input", code=error.code) from error
        return output.embedding


def embeddings_pieces(
    vectors: Sequence[np.ndarray], *, model: str, prompt_tokens: int, encoding_format: Literal["float", "base64"]
) -> Iterator[bytes]:
    """Yields the whole answer, a piece for each vector.

    base64 encodes little-endian float32, which the openai client expects.
    """
    yield b'{"object":"list","data":['
    for index, vector in enumerate(vectors):
        numbers = (
            vector.tolist()
            if encoding_format == "float"
            else base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
        )
        item = {"object": "embedding", "index": index, "embedding": numbers}
        yield (b"," if index else b"") + _dumps(item)
    usage = {"prompt_tokens": prompt_tokens, "total_tokens": prompt_tokens}
    yield b'],"model":' + _dumps(model) + b',"usage":' + _dumps(usage) + b"}"


def _dumps(value: object) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
