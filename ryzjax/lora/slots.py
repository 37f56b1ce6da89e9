"""Many adapters in one batch. Each adapter has a slot, and each token uses the matrices of its own adapter's slot.

A layer holds the A of all slots as one matrix [slots * r, K], and the B of all slots as one matrix [N, slots * r]. A
step then needs two plain products for each layer, whichever adapters its tokens use:

1. The product with A runs together with the layer's own product.
2. For each token, the results that belong to other slots are set to zero.
3. The product with B follows.

This costs as much as slots * r more columns. It was measured against gathering matrices for each token (Punica, arXiv
2310.18547) and against grouped products over sorted tokens. On a CPU it was the fastest for 1 to 16 slots of rank 8
and 1 to 512 tokens. The result of a row depends on that row only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import lax
from jaxtyping import Array, Float, Int

from ryzjax.bits import from_bits, storage_dtype, to_bits
from ryzjax.layers.linear import Linear, LinearLike, project_weights
from ryzjax.layers.quantized import QuantizedWeight
from ryzjax.layers.weight import Weight
from ryzjax.lora.linear import module_at
from ryzjax.models.decoder import Decoder

__all__ = ["BlockSlots", "SlotLayer", "SlottedLinear", "attach_slots", "slot_parts", "write_slot"]

Values = TypeVar("Values", np.ndarray, jax.Array)


class BlockSlots(NamedTuple):
    """The slots of one block.

    Attributes:
      a: A of all slots, [slots * r, K], for each layer in the order of the plan.
      b: B of all slots, [N, slots * r], for each layer.
      scales: The factors of the updates, float32 [slots, layers].
    """

    a: tuple[jax.Array, ...]
    b: tuple[jax.Array, ...]
    scales: jax.Array


@dataclass(frozen=True, kw_only=True)
class SlotLayer:
    """A layer that adapters can update.

    Attributes:
      name: The name in the model ("layers.0.attention.q").
      path: The name in the block ("attention.q").
      shape: The shape of the weight, [N, K].
      axes, units: The logical axes and the indivisible runs of the weight.
    """

    name: str
    path: str
    shape: tuple[int, int]
    axes: tuple[str | None, str | None]
    units: tuple[int, int]

    @property
    def kind(self) -> tuple[object, ...]:
        """A key that is equal for layers whose arrays have the same shapes and shardings."""
        return self.path, self.shape, self.axes, self.units


class SlottedLinear(LinearLike):
    """A linear layer with the update of each token's slot: y = W x + scale * B A x + bias.

    As in `lora.linear.low_rank_update`, A x is rounded to the dtype of x, and the scale multiplies in float32.

    Args:
      base: The linear layer.
      layer: Its entry in the plan.
      rank: The rank of a slot.
      a, b: The matrices of all slots, [slots * r, K] and [N, slots * r].
      scale: The factor for each token, float32 [T, 1].
      slots: The slot of each token, int32 [T]; -1 for a token without an adapter.
    """

    def __init__(
        self,
        base: Linear,
        layer: SlotLayer,
        *,
        rank: int,
        a: Float[Array, "slot_ranks K"],
        b: Float[Array, "N slot_ranks"],
        scale: Float[Array, "T 1"],
        slots: Int[Array, " T"],
    ):
        self.placement = base.placement
        self.base = base
        self.rank = rank
        self.a = _weight(a, (None, layer.axes[1]), (1, layer.units[1]))
        self.b = _weight(b, (layer.axes[0], None), (layer.units[0], 1))
        self.scale = nnx.Variable(scale)
        self.slots = nnx.Variable(slots)

    def matrices(self) -> tuple[Weight | QuantizedWeight, ...]:
        """Returns the layer's own matrices, and A of all slots."""
        return (*self.base.matrices(), self.a)

    def finish(self, products: Sequence[Float[Array, "T _"]]) -> Float[Array, "T N"]:
        """Adds each token's update. For a token without an adapter the update is exactly zero."""
        *own, inner = products
        slot_of_column = jnp.arange(inner.shape[1]) // self.rank
        inner = jnp.where(self.slots[...][:, None] == slot_of_column, inner, 0.0).astype(self.b[...].dtype)
        (update,) = project_weights(inner, (self.b,), self.placement)
        return self.base.finish(own) + self.scale[...] * update


def attach_slots(
    decoder: Decoder,
    blocks: Sequence[Sequence[SlotLayer]],
    slots: Sequence[BlockSlots],
    token_slots: Int[Array, " T"],
    *,
    rank: int,
) -> None:
    """Replaces the planned layers by SlottedLinears. Call it inside jit, on a model that was merged there.

    Args:
      decoder: The model.
      blocks: The layers of each block (`SlotPlan.blocks`).
      slots: The slots of each block.
      token_slots: The slot of each token, int32 [T]; -1 for a token without an adapter.
      rank: The rank of a slot.
    """
    for number, (layers, arrays) in enumerate(zip(blocks, slots, strict=True)):
        scales = arrays.scales[jnp.maximum(token_slots, 0)]
        for i, layer in enumerate(layers):
            owner, attribute = module_at(decoder.layers[number], layer.path)
            adapted = SlottedLinear(
                getattr(owner, attribute),
                layer,
                rank=rank,
                a=arrays.a[i],
                b=arrays.b[i],
                scale=scales[:, i : i + 1],
                slots=token_slots,
            )
            setattr(owner, attribute, adapted)


def write_slot(
    block: BlockSlots, values: jax.Array, scales: jax.Array, slot: jax.Array, *, layers: Sequence[SlotLayer], rank: int
) -> BlockSlots:
    """Writes one block of a `PackedAdapter` into a slot, and returns the block's slots.

    Args:
      block: The slots of the block, which the caller donates.
      values, scales: The block's arrays of the `PackedAdapter`.
      slot: The index of the slot, an int32 scalar.
      layers: The layers of the block (`SlotPlan.blocks`).
      rank: The rank of a slot.
    """
    a_out: list[jax.Array] = []
    b_out: list[jax.Array] = []
    at = 0
    for layer, a, b in zip(layers, block.a, block.b, strict=True):
        new_a, new_b = slot_parts(values, at, layer, rank)
        at += rank * sum(layer.shape)
        a_out.append(_updated(a, new_a, (slot * rank, 0)))
        b_out.append(_updated(b, new_b, (0, slot * rank)))
    return BlockSlots(
        a=tuple(a_out), b=tuple(b_out), scales=lax.dynamic_update_slice(block.scales, scales[None], (slot, 0))
    )


def _updated(array: jax.Array, part: jax.Array, start: tuple[jax.Array | int, ...]) -> jax.Array:
    """Applies dynamic_update_slice. bfloat16 values are updated as their bits, for the reason in `ryzjax.bits`."""
    stored = storage_dtype(array.dtype)
    bits = lax.dynamic_update_slice(to_bits(array, stored), to_bits(part, stored), start)
    return from_bits(bits).astype(array.dtype)


def slot_parts(flat: Values, at: int, layer: SlotLayer, rank: int) -> tuple[Values, Values]:
    """Returns A [r, K] and B [N, r] of a layer whose values start at `at`, as views if `flat` is a numpy array."""
    n, k = layer.shape
    middle, end = at + rank * k, at + rank * (k + n)
    return flat[at:middle].reshape(rank, k), flat[middle:end].reshape(n, rank)


def _weight(array: jax.Array, axes: tuple[str | None, str | None], units: tuple[int, int]) -> Weight:
    weight = Weight(array.shape, array.dtype, axes, units)
    weight[...] = array
    return weight
