"""The compiled step: a backbone by token bucket and a head by sampling rows, both pure.

    backbone(leaves, cache, tokens, packed)            -> cache, hidden of the sampling rows, sample fields
            (and slots, where adapters are served)        (and all hidden, of a step with chunks)
    head(outer, history, bias, tokens, hidden, fields) -> history, tokens, result

`leaves` are all weights, `outer` those outside the layers, by name: handing an array over costs the host time.

Two executables, because compiles then add up (T buckets + S buckets) instead of multiplying. Tokens chosen
by a step stay on the device, by slot, where the next step reads them: it can be dispatched before the host
has seen them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ryzjax.batch import KVCache, TokenBatch
from ryzjax.dims import Int32Array
from ryzjax.lora.slot_plan import SlotPlan
from ryzjax.lora.slots import BlockSlots, attach_slots
from ryzjax.models.abstract import AbstractModel
from ryzjax.ops.sampling.sampling import MAX_TOP, Sampled, SamplingInputs, sample
from ryzjax.serving.host.packing import ADAPTER_SLOT, SAMPLE_FIELDS, PackedLayout
from ryzjax.serving.messages.request import PromptScores

__all__ = ["RESULT_FIELDS", "SamplerState", "StepResult", "make_backbone", "make_head", "pack_result", "set_slot"]

RESULT_FIELDS = 3 + 2 * MAX_TOP
_FLOATS = ("temperature", "top_p", "min_p", "repetition", "presence", "frequency")


class SamplerState(NamedTuple):
    """What sampling remembers on the device, by slot.

    Attributes:
      history: int32 [slots, V], see `ops.sampling`.
      bias: float32 [slots, V].
      tokens: int32 [slots], the token each slot generated last.
    """

    history: jax.Array
    bias: jax.Array
    tokens: jax.Array


def make_backbone(
    model: AbstractModel, layout: PackedLayout, *, max_query_len: int, adapters: SlotPlan | None = None
) -> Callable[..., tuple]:
    """The backbone for one bucket; see the module docstring. With `adapters` it takes their arrays as well.

    With chunks (`max_query_len` above 1) it returns the hidden states [T, E] of all tokens as well, for those of a
    prompt that are scored or pooled: a buffer it has anyway, so it costs nothing where nobody reads it.
    """

    def backbone(
        leaves: tuple[jax.Array, ...],
        cache: KVCache,
        tokens: jax.Array,
        packed: jax.Array,
        slots: tuple[BlockSlots, ...] = (),
    ) -> tuple[KVCache, jax.Array, jax.Array] | tuple[KVCache, jax.Array, jax.Array, jax.Array]:
        batch, samples, token_slots = _unpack(packed, tokens, layout, cache.page_size)
        decoder = model.merge(leaves)
        if adapters is not None and token_slots is not None:
            attach_slots(decoder, adapters.blocks, slots, token_slots, rank=adapters.rank)
        hidden, cache = decoder.forward(batch, cache, max_query_len=max_query_len)
        rows = hidden[samples[:, SAMPLE_FIELDS.index("token_index")]]
        rows = lax.with_sharding_constraint(rows, model.placement.replicated)
        return (cache, rows, samples) if max_query_len == 1 else (cache, rows, samples, hidden)

    return backbone


def make_head(model: AbstractModel, rows: int) -> Callable[..., tuple]:
    """The head for `rows` sampling rows."""

    def head(
        outer: Mapping[str, jax.Array],
        history: jax.Array,
        bias: jax.Array,
        tokens: jax.Array,
        hidden: jax.Array,
        samples: jax.Array,
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        fields = {name: samples[:rows, i] for i, name in enumerate(SAMPLE_FIELDS)}
        logits = model.merge_some(outer).logits(hidden[:rows])
        logits = lax.with_sharding_constraint(logits, model.placement.replicated)
        inputs = _sampling_inputs(fields)
        slots = fields["slot"]
        sampled = sample(logits, inputs, history, bias, slots)
        # Unused rows have a slot past the end: dropped.
        history = history.at[slots, sampled.token].add(inputs.use_history.astype(jnp.int32), mode="drop")
        tokens = tokens.at[slots].set(sampled.token, mode="drop")
        return history, tokens, pack_result(sampled)

    return head


def pack_result(sampled: Sampled) -> jax.Array:
    """What the host is told of S tokens, in one int32 array [S, RESULT_FIELDS]; floats as their bits."""
    return jnp.concatenate(
        [
            sampled.token[:, None],
            _bits(sampled.logprob)[:, None],
            sampled.rank[:, None],
            sampled.top_tokens,
            _bits(sampled.top_logprobs),
        ],
        axis=1,
    )


def set_slot(
    history: jax.Array, bias: jax.Array, slot: jax.Array, history_row: jax.Array, bias_row: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """History and bias with one slot's rows replaced: run when a sequence that needs them is admitted."""
    return (
        lax.dynamic_update_slice(history, history_row[None], (slot, 0)),
        lax.dynamic_update_slice(bias, bias_row[None], (slot, 0)),
    )


class StepResult:
    """A step's result on the host.

    Args:
      raw: int32 [rows, RESULT_FIELDS] as the head wrote it.
      scores: the same of each scored position, in the order of the plan.
      vectors: float32 [E] sums over the pooled positions, one for each sequence that ends with them.
    """

    def __init__(self, raw: Int32Array, scores: Int32Array | None = None, vectors: Sequence[np.ndarray] = ()):
        self.tokens: list[int] = raw[:, 0].tolist()
        self.vectors = vectors
        self._raw = raw
        self._scores = scores

    def logprobs(self, row: int, count: int) -> tuple[float, int, tuple[tuple[int, float], ...]]:
        """(log-probability, rank, `count` likeliest alternatives) of one row."""
        raw = self._raw[row]
        tokens = raw[3 : 3 + count].tolist()
        values = raw[3 + MAX_TOP : 3 + MAX_TOP + count].view("float32").tolist()
        return float(raw[1:2].view("float32")[0]), int(raw[2]), tuple(zip(tokens, values, strict=True))

    def prompt_scores(self, start: int, stop: int, count: int) -> PromptScores:
        """Scored positions [`start`, `stop`) of the step, with `count` alternatives each."""
        assert self._scores is not None, "the step scores nothing"
        raw = self._scores[start:stop]
        return PromptScores(
            token_ids=raw[:, 0],
            logprobs=raw[:, 1].view("float32"),
            ranks=raw[:, 2],
            top_tokens=raw[:, 3 : 3 + count],
            top_logprobs=raw[:, 3 + MAX_TOP : 3 + MAX_TOP + count].view("float32"),
        )


def _unpack(
    packed: jax.Array, tokens: jax.Array, layout: PackedLayout, page_size: int
) -> tuple[TokenBatch, jax.Array, jax.Array | None]:
    """The batch, the rows that sample, and where adapters are served the slot of each token's (-1: none)."""

    def part(name: str) -> jax.Array:
        where, shape = layout.part(name)
        return packed[where].reshape(shape)

    counts, ids, token_rows = part("counts"), part("token_ids"), part("token_rows")
    rows = {name: part("rows")[:, i] for i, name in enumerate(layout.row_fields)}
    table = part("page_table")
    real = token_rows >= 0
    row = jnp.maximum(token_rows, 0)
    first_position = rows["context_len"] - rows["query_len"] - rows["query_start"]
    positions = jnp.where(real, first_position[row] + jnp.arange(layout.tokens), 0)
    adapter_slots = rows.pop(ADAPTER_SLOT, None)
    token_slots = None if adapter_slots is None else jnp.where(real, adapter_slots[row], -1)
    rope_lengths = jnp.maximum(rows.pop("rope_length")[row], positions + 1)
    batch = TokenBatch(
        token_ids=jnp.where(ids < 0, tokens[jnp.maximum(-1 - ids, 0)], ids),
        positions=positions,
        rope_lengths=rope_lengths,
        write_page=jnp.where(real, table[row, positions // page_size], 0),
        write_offset=positions % page_size,
        page_table=table,
        num_decode_rows=counts[0],
        num_rows=counts[1],
        **rows,
    )
    return batch, part("samples"), token_slots


def _sampling_inputs(fields: dict[str, jax.Array]) -> SamplingInputs:
    floats = {name: lax.bitcast_convert_type(fields[name], jnp.float32) for name in _FLOATS}
    seed = lax.bitcast_convert_type(jnp.stack([fields["seed_high"], fields["seed_low"]], axis=1), jnp.uint32)
    return SamplingInputs(
        top_k=fields["top_k"],
        seed=seed,
        output_index=fields["output_index"],
        use_history=fields["use_history"] != 0,
        ban_stops=fields["ban_stops"] != 0,
        wants_top=fields["wants_top"] != 0,
        **floats,
    )


def _bits(x: jax.Array) -> jax.Array:
    return lax.bitcast_convert_type(x.astype(jnp.float32), jnp.int32)
