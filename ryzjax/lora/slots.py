"""Many adapters in one batch: their matrices side by side, each token taking those of its own adapter's slot.

A layer holds the A of all slots as one matrix [slots * r, K] and the B of all as [N, slots * r], so that a step runs
two plain products a layer, whatever adapters its tokens belong to: the first together with the layer's own product,
then what a token computed with the A of other slots is set to zero, then the second. The cost is that of slots * r more
columns. Beside gathering matrices for each token (Punica, arXiv 2310.18547) and products by group of sorted tokens it
was the fastest on a CPU for 1 to 16 slots of rank 8, at 1 to 512 tokens; and a row's result depends on the row alone.
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
      a: [slots * r, K] of each layer, in the order of the plan's layers.
      b: [N, slots * r] of each layer.
      scales: float32 [slots, layers].
    """

    a: tuple[jax.Array, ...]
    b: tuple[jax.Array, ...]
    scales: jax.Array


@dataclass(frozen=True, kw_only=True)
class SlotLayer:
    """A layer that adapters may update.

    Attributes:
      name: in the model ("layers.0.attention.q").
      path: in its block ("attention.q").
      shape: [N, K] of its weight.
      axes, units: of its weight.
    """

    name: str
    path: str
    shape: tuple[int, int]
    axes: tuple[str | None, str | None]
    units: tuple[int, int]

    @property
    def kind(self) -> tuple[object, ...]:
        """What layers whose arrays are alike share."""
        return self.path, self.shape, self.axes, self.units


class SlottedLinear(LinearLike):
    """y = W x + scale * B A x + bias in a linear layer's place, with A, B and scale of each token's slot.

    As `lora.linear.low_rank_update`: A x is rounded to the dtype of x, the scale multiplies in float32.

    Args:
      base: the layer.
      layer: of the plan.
      rank: r of a slot.
      a, b: of all slots.
      scale: of each token, float32 [T, 1].
      slots: of each token, int32 [T]; -1 for the layer alone.
    """

    def __init__(
        self,
        base: Linear,
        layer: SlotLayer,
        *,
        rank: int,
        a: jax.Array,
        b: jax.Array,
        scale: jax.Array,
        slots: jax.Array,
    ):
        self.placement = base.placement
        self.base = base
        self.rank = rank
        self.a = _weight(a, (None, layer.axes[1]), (1, layer.units[1]))
        self.b = _weight(b, (layer.axes[0], None), (layer.units[0], 1))
        self.scale = nnx.Variable(scale)
        self.slots = nnx.Variable(slots)

    def matrices(self) -> tuple[Weight | QuantizedWeight, ...]:
        """The layer's own, and A of all slots."""
        return (*self.base.matrices(), self.a)

    def finish(self, products: Sequence[jax.Array]) -> jax.Array:
        """Adds each token's update. A token without one gets exactly zero more, whatever the slots hold."""
        *own, inner = products
        slot_of_column = jnp.arange(inner.shape[1]) // self.rank
        inner = jnp.where(self.slots[...][:, None] == slot_of_column, inner, 0.0).astype(self.b[...].dtype)
        (update,) = project_weights(inner, (self.b,), self.placement)
        return self.base.finish(own) + self.scale[...] * update


def attach_slots(
    decoder: Decoder,
    blocks: Sequence[Sequence[SlotLayer]],
    slots: Sequence[BlockSlots],
    token_slots: jax.Array,
    *,
    rank: int,
) -> None:
    """Puts a SlottedLinear in the place of layers; inside jit, on a model merged there.

    Args:
      blocks: the layers of each block.
      slots: the arrays of each block.
      token_slots: int32 [T], -1 for tokens without an adapter.
      rank: r of a slot.
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
    """A block's arrays (donated by the caller) with one slot replaced by a block of a `PackedAdapter`."""
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
    """dynamic_update_slice, of bits where values are bfloat16: see `ryzjax.bits`."""
    stored = storage_dtype(array.dtype)
    bits = lax.dynamic_update_slice(to_bits(array, stored), to_bits(part, stored), start)
    return from_bits(bits).astype(array.dtype)


def slot_parts(flat: Values, at: int, layer: SlotLayer, rank: int) -> tuple[Values, Values]:
    """(A [r, K], B [N, r]) of a layer whose values begin at `at`; views where `flat` is an array of numpy's."""
    n, k = layer.shape
    middle, end = at + rank * k, at + rank * (k + n)
    return flat[at:middle].reshape(rank, k), flat[middle:end].reshape(n, rank)


def _weight(array: jax.Array, axes: tuple[str | None, str | None], units: tuple[int, int]) -> Weight:
    weight = Weight(array.shape, array.dtype, axes, units)
    weight[...] = array
    return weight
