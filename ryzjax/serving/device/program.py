"""Program: the declaration of one compiled function of the engine, and the arrays that its programs share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from ryzjax.batch import KVCache
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.kv_cache import KVFormat, kv_cache_shapes
from ryzjax.serving.device.sampler_state import SamplerState

__all__ = ["Program", "ProgramKey", "StepShapes"]

ProgramKey = tuple[Literal["decode", "mixed", "head", "set_slot", "gather", "score", "pool", "set_adapter"], int]
"""The kind of a program, and its size: the tokens or rows of its bucket, or the block of an adapter."""


@dataclass(frozen=True, kw_only=True)
class Program:
    """One function to compile ahead of traffic.

    Attributes:
      key: the name under which the runner finds the compiled program.
      function: a pure function.
      arguments: its arguments as abstract arrays, or as arrays that only give their shapes.
      out_shardings: the shardings of its results.
      donated: the indices of the arguments whose memory the results take over.
      depends_on_pool: whether a shape depends on the number of KV cache pages.
    """

    key: ProgramKey
    function: Callable[..., object]
    arguments: tuple[object, ...]
    out_shardings: object
    donated: tuple[int, ...] = ()
    depends_on_pool: bool = False

    def lower(self) -> jax.stages.Lowered:
        """Traces and lowers the function."""
        jitted = jax.jit(self.function, donate_argnums=self.donated, out_shardings=self.out_shardings)
        return jitted.lower(*self.arguments)


@dataclass(frozen=True, kw_only=True)
class StepShapes:
    """The abstract arrays that the programs of one model share.

    Attributes:
      model: the abstract model.
      leaves: all weights, in the order of `model.weights`.
      outer: the weights outside the layers, by name.
      kv_format: the format of the KV cache.
      max_sequences: the most rows of a step, and the number of slots.
      page_size_tokens: the tokens of a page.
      tile_tokens: the prompt positions that are scored or pooled together.
    """

    model: AbstractModel
    leaves: tuple[jax.Array, ...]
    outer: dict[str, jax.Array]
    kv_format: KVFormat
    max_sequences: int
    page_size_tokens: int
    tile_tokens: int

    def replicated(self, shape: tuple[int, ...], dtype: DTypeLike) -> jax.ShapeDtypeStruct:
        """Returns an array that every device holds whole."""
        return jax.ShapeDtypeStruct(shape, dtype, sharding=self.model.placement.replicated)

    def cache(self, num_pages: int) -> KVCache:
        """Returns the KV cache of `num_pages` pages."""
        return kv_cache_shapes(
            self.model.config,
            self.model.placement,
            self.kv_format.dtype,
            num_pages=num_pages,
            page_size_tokens=self.page_size_tokens,
        )

    @property
    def state(self) -> SamplerState:
        """The sampling state of all slots."""
        vocab, slots = self.model.config.vocab_size, self.max_sequences
        return SamplerState._make(
            [
                self.replicated((slots, vocab), jnp.int32),
                self.replicated((slots, vocab), jnp.float32),
                self.replicated((slots,), jnp.int32),
            ]
        )

    @property
    def sums(self) -> jax.ShapeDtypeStruct:
        """The sums of pooled hidden states, float32 [slots, E]."""
        return self.replicated((self.max_sequences, self.model.config.hidden_size), jnp.float32)

    def hidden_rows(self, rows: int) -> jax.ShapeDtypeStruct:
        """Returns hidden states [rows, E] that every device holds whole."""
        config = self.model.config
        return self.replicated((rows, config.hidden_size), jnp.dtype(config.dtype))

    def hidden(self, tokens: int) -> jax.ShapeDtypeStruct:
        """Returns the hidden states [T, E] of a step with chunks, split as the model splits tokens."""
        config, shape = self.model.config, (tokens, self.model.config.hidden_size)
        sharding = self.model.placement.sharding(("tokens", None), shape)
        return jax.ShapeDtypeStruct(shape, jnp.dtype(config.dtype), sharding=sharding)
