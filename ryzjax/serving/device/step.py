"""The compiled step: a backbone for each token bucket and a head for each number of sampling rows. Both are pure.

    backbone(leaves, cache, tokens, packed)            -> cache, hidden states of the sampling rows, sample fields
            (and slots, if adapters are served)           (and all hidden states, for a step with chunks)
    head(outer, history, bias, tokens, hidden, fields) -> history, tokens, result

`leaves` are all weights. `outer` are the weights outside the layers, by name, because passing an array costs host time.

There are two executables, so that the numbers of token buckets and row buckets add up instead of multiplying. The
tokens that a step chooses stay on the device, by slot. The next step reads them there, so it can be dispatched before
the host has seen them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax

from ryzjax.batch import KVCache
from ryzjax.lora.slot_plan import SlotPlan
from ryzjax.lora.slots import BlockSlots, attach_slots
from ryzjax.models.abstract import AbstractModel
from ryzjax.ops.sampling.sampling import sample
from ryzjax.serving.device.program import Program, StepShapes
from ryzjax.serving.device.sampler_state import set_slot
from ryzjax.serving.device.step_result import pack_result
from ryzjax.serving.device.unpacking import sampling_inputs, unpack_batch, unpack_samples
from ryzjax.serving.host.packing import SAMPLE_TABLE, PackedLayout, column_of

__all__ = ["backbone_program", "head_program", "set_slot_program"]


def _make_backbone(
    model: AbstractModel, layout: PackedLayout, *, max_query_len: int, adapters: SlotPlan | None
) -> Callable[..., tuple]:
    def backbone(
        leaves: tuple[jax.Array, ...],
        cache: KVCache,
        tokens: jax.Array,
        packed: jax.Array,
        slots: tuple[BlockSlots, ...] = (),
    ) -> tuple[KVCache, jax.Array, jax.Array] | tuple[KVCache, jax.Array, jax.Array, jax.Array]:
        batch, samples, token_slots = unpack_batch(packed, tokens, layout, cache.page_size)
        decoder = model.merge(leaves)
        if adapters is not None and token_slots is not None:
            attach_slots(decoder, adapters.blocks, slots, token_slots, rank=adapters.rank)
        hidden, cache = decoder.forward(batch, cache, max_query_len=max_query_len)
        rows = hidden[samples[:, column_of(SAMPLE_TABLE, "token_index")]]
        rows = lax.with_sharding_constraint(rows, model.placement.replicated)
        return (cache, rows, samples) if max_query_len == 1 else (cache, rows, samples, hidden)

    return backbone


def backbone_program(
    shapes: StepShapes,
    kind: Literal["decode", "mixed"],
    layout: PackedLayout,
    *,
    num_pages: int,
    adapters: SlotPlan | None,
) -> Program:
    """Declares the backbone of one token bucket.

    A mixed step also returns the hidden states [T, E] of all its tokens, for prompts that are scored or pooled. The
    buffer exists anyway, so this costs nothing if nobody reads it.

    Args:
      shapes: the shared arrays.
      kind: "decode" if every row decodes, "mixed" if the step has chunks.
      layout: the layout of the packed buffer.
      num_pages: the pages of the KV cache.
      adapters: the slots of adapters, or None. The program then takes no arrays of slots.
    """
    cache, replicated = shapes.cache(num_pages), shapes.model.placement.replicated
    out = (jax.tree.map(lambda array: array.sharding, cache), replicated, replicated)
    return Program(
        key=(kind, layout.tokens),
        function=_make_backbone(
            shapes.model, layout, max_query_len=1 if kind == "decode" else layout.tokens, adapters=adapters
        ),
        arguments=(
            shapes.leaves,
            cache,
            shapes.state.tokens,
            shapes.replicated((layout.size,), jnp.int32),
            *(() if adapters is None else (adapters.shapes,)),
        ),
        out_shardings=out if kind == "decode" else (*out, shapes.hidden(layout.tokens).sharding),
        donated=(1,),
        depends_on_pool=True,
    )


def _make_head(model: AbstractModel, rows: int) -> Callable[..., tuple]:
    def head(
        outer: Mapping[str, jax.Array],
        history: jax.Array,
        bias: jax.Array,
        tokens: jax.Array,
        hidden: jax.Array,
        samples: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        fields = unpack_samples(samples[:rows])
        logits = model.merge_some(outer).logits(hidden[:rows])
        logits = lax.with_sharding_constraint(logits, model.placement.replicated)
        inputs = sampling_inputs(fields)
        slots = fields["slot"]
        sampled = sample(logits, inputs, history, bias, slots)
        # Unused rows have a slot past the last one, so their writes are dropped.
        history = history.at[slots, sampled.token].add(inputs.use_history.astype(jnp.int32), mode="drop")
        tokens = tokens.at[slots].set(sampled.token, mode="drop")
        return history, tokens, pack_result(sampled)

    return head


def head_program(shapes: StepShapes, rows: int) -> Program:
    """Declares the head for `rows` sampling rows."""
    state = shapes.state
    return Program(
        key=("head", rows),
        function=_make_head(shapes.model, rows),
        arguments=(
            shapes.outer,
            state.history,
            state.bias,
            state.tokens,
            shapes.hidden_rows(shapes.max_sequences),
            shapes.replicated((shapes.max_sequences, len(SAMPLE_TABLE)), jnp.int32),
        ),
        out_shardings=shapes.model.placement.replicated,
        donated=(1,),
    )


def set_slot_program(shapes: StepShapes) -> Program:
    """Declares the program that writes the history and bias of one slot."""
    state, vocab = shapes.state, shapes.model.config.vocab_size
    return Program(
        key=("set_slot", 0),
        function=set_slot,
        arguments=(
            state.history,
            state.bias,
            shapes.replicated((), jnp.int32),
            shapes.replicated((vocab,), jnp.int32),
            shapes.replicated((vocab,), jnp.float32),
        ),
        out_shardings=shapes.model.placement.replicated,
        donated=(0, 1),
    )
