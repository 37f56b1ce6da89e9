"""Unpacks the buffer of `serving.host.packing` inside a compiled step. The tables there give names and offsets."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Int

from ryzjax.batch import TokenBatch
from ryzjax.ops.sampling.sampling import SamplingInputs
from ryzjax.serving.host.packing import ADAPTER_SLOT, COUNT_TABLE, SAMPLE_TABLE, Field, PackedLayout

__all__ = ["sampling_inputs", "unpack_batch", "unpack_samples"]


def unpack_batch(
    packed: Int[Array, " words"], tokens: Int[Array, " slots"], layout: PackedLayout, page_size: int
) -> tuple[TokenBatch, Int[Array, "S fields"], Int[Array, " T"] | None]:
    """Returns the batch, the packed fields of the rows that sample, and the adapter slot of each token (-1 for none).

    Args:
      packed: the buffer of a step.
      tokens: the last generated token of each slot.
      layout: the layout of the buffer.
      page_size: the tokens of a page.
    """
    parts = {name: packed[where].reshape(shape) for name, (where, shape) in layout.parts.items()}
    counts, ids, token_rows, table = parts["counts"], parts["token_ids"], parts["token_rows"], parts["page_table"]
    rows = _decode(parts["rows"], layout.row_table)
    real = token_rows >= 0
    row = jnp.maximum(token_rows, 0)
    first_position = rows["context_len"] - rows["query_len"] - rows["query_start"]
    positions = jnp.where(real, first_position[row] + jnp.arange(layout.tokens), 0)
    adapter_slots = rows.pop(ADAPTER_SLOT.name, None)
    token_slots = None if adapter_slots is None else jnp.where(real, adapter_slots[row], -1)
    rope_lengths = jnp.maximum(rows.pop("rope_length")[row], positions + 1)
    batch = TokenBatch(
        token_ids=jnp.where(ids < 0, tokens[jnp.maximum(-1 - ids, 0)], ids),
        positions=positions,
        rope_lengths=rope_lengths,
        write_page=jnp.where(real, table[row, positions // page_size], 0),
        write_offset=positions % page_size,
        page_table=table,
        **{field.name: counts[i] for i, field in enumerate(COUNT_TABLE)},
        **rows,
    )
    return batch, parts["samples"], token_slots


def unpack_samples(samples: Int[Array, "S fields"]) -> dict[str, jax.Array]:
    """Returns the fields of `SAMPLE_TABLE` by name, [S] each."""
    return _decode(samples, SAMPLE_TABLE)


def sampling_inputs(fields: dict[str, jax.Array]) -> SamplingInputs:
    """Returns the inputs of the sampler, from the fields of `unpack_samples`."""
    names = [name for name in SamplingInputs._fields if name != "seed"]
    seed = jnp.stack([fields["seed_high"], fields["seed_low"]], axis=1)
    return SamplingInputs(seed=seed, **{name: fields[name] for name in names})


def _decode(words: jax.Array, table: tuple[Field, ...]) -> dict[str, jax.Array]:
    """Returns the columns [rows] of words [rows, fields] by name, in the dtypes of their encodings."""
    columns: dict[str, jax.Array] = {}
    for i, field in enumerate(table):
        column = words[:, i]
        if field.encoding == "bool":
            column = column != 0
        elif field.encoding != "int32":
            column = lax.bitcast_convert_type(column, jnp.dtype(field.encoding))
        columns[field.name] = column
    return columns
