"""SlotPlan: the layers of a model that adapters in slots can update, the slots' arrays, and how to fill a slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ryzjax.errors import ConfigError
from ryzjax.layers.linear import Linear
from ryzjax.layers.quantized import QuantizedWeight
from ryzjax.lora.adapter import Adapter, check_adapter
from ryzjax.lora.linear import module_at
from ryzjax.lora.slots import BlockSlots, SlotLayer, slot_parts
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.weight_names import split_layer

__all__ = ["PackedAdapter", "SlotPlan"]


class PackedAdapter(NamedTuple):
    """An adapter on the host, in the form that `write_slot` reads.

    Attributes:
      values: For each block, a flat array of A [r, K] and B [N, r] of each of its layers in order. Both are zero for a
        layer that is not adapted.
      scales: For each block, the factors of the updates, float32 [layers].
    """

    values: tuple[np.ndarray, ...]
    scales: tuple[np.ndarray, ...]

    @property
    def nbytes(self) -> int:
        """The size on the host in bytes."""
        return sum(array.nbytes for array in (*self.values, *self.scales))


@dataclass(frozen=True, eq=False)
class SlotPlan:
    """The slots of a model. Adapters can update plain linear layers of blocks, but not routers, experts or the head.

    Args:
      model: The abstract model.
      slots: The number of adapters that the device holds at once.
      rank: The largest rank. Adapters of smaller rank are padded with zeros.
    """

    model: AbstractModel
    slots: int
    rank: int

    @cached_property
    def blocks(self) -> tuple[tuple[SlotLayer, ...], ...]:
        """The layers of each block that adapters can update."""
        decoder = nnx.merge(self.model.graphdef, self.model.state)
        blocks: list[list[SlotLayer]] = [[] for _ in range(self.model.config.num_layers)]
        for name, shape in self.model.linears.items():
            number, path = split_layer(name)
            if number is None or len(shape) != 2 or name.endswith(".router"):
                continue
            owner, attribute = module_at(decoder, name)
            axes, units = _split_of(getattr(owner, attribute))
            blocks[number].append(SlotLayer(name=name, path=path, shape=shape, axes=axes, units=units))
        return tuple(map(tuple, blocks))

    @cached_property
    def shapes(self) -> tuple[BlockSlots, ...]:
        """The shapes, dtypes and shardings of the slots of each block."""
        return tuple(self._block_shapes(block) for block in self.blocks)

    @cached_property
    def kind_of(self) -> tuple[int, ...]:
        """For each block, the first block with arrays of the same kind. They share a compiled `write_slot`."""
        kinds = [tuple(layer.kind for layer in layers) for layers in self.blocks]
        return tuple(kinds.index(kind) for kind in kinds)

    @property
    def kinds(self) -> tuple[int, ...]:
        """The indices of the blocks that are the first of their kind."""
        return tuple(dict.fromkeys(self.kind_of))

    @property
    def device_bytes(self) -> int:
        """The size of all slots on one device, in bytes."""
        leaves = jax.tree.leaves(self.shapes)
        return sum(int(np.prod(s.sharding.shard_shape(s.shape))) * s.dtype.itemsize for s in leaves)

    def empty(self) -> tuple[BlockSlots, ...]:
        """Returns the slots of each block, filled with zeros."""
        return jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), self.shapes)

    def packed_shapes(self, block: int) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
        """Returns the shapes of a block's `PackedAdapter.values` and `PackedAdapter.scales`."""
        size = sum(self.rank * sum(layer.shape) for layer in self.blocks[block])
        replicated = self.model.placement.replicated
        return (
            jax.ShapeDtypeStruct((size,), jnp.dtype(self.model.config.dtype), sharding=replicated),
            jax.ShapeDtypeStruct((len(self.blocks[block]),), jnp.float32, sharding=replicated),
        )

    def pack(self, adapter: Adapter, name: str) -> PackedAdapter:
        """Packs an adapter in the model's dtype, padded to the rank.

        Args:
          adapter: The adapter.
          name: The name of the adapter in error messages.

        Raises:
          ConfigError: The adapter was made for another model, adapts layers that cannot be served, has a larger rank,
            is a DoRA, or has numbers that are not finite.
        """
        self._check(adapter, name)
        dtype = jnp.dtype(self.model.config.dtype)
        values: list[np.ndarray] = []
        scales: list[np.ndarray] = []
        for number, block in enumerate(self.blocks):
            flat = np.zeros(self.packed_shapes(number)[0].shape, dtype)
            at = 0
            for layer in block:
                a, b = slot_parts(flat, at, layer, self.rank)
                at += self.rank * sum(layer.shape)
                weights = adapter.weights.get(layer.name)
                if weights is not None:
                    a[: weights.rank] = np.asarray(weights.a).astype(dtype)
                    b[:, : weights.rank] = np.asarray(weights.b).astype(dtype)
                    if not (_is_finite(a) and _is_finite(b)):
                        raise ConfigError(
                            f"adapter {name!r}: the matrices of {layer.name} hold NaN or infinity in "
                            f"{self.model.config.dtype}; train it again, or serve an earlier checkpoint of it"
                        )
            values.append(flat)
            scales.append(
                np.array(
                    [adapter.config.scale_of(x.name) if x.name in adapter.weights else 0.0 for x in block], np.float32
                )
            )
        return PackedAdapter(values=tuple(values), scales=tuple(scales))

    def _check(self, adapter: Adapter, name: str) -> None:
        check_adapter(adapter, self.model.linears, name=name)
        if adapter.config.use_dora:
            raise ConfigError(
                f"adapter {name!r} is a DoRA, which is not served beside others; merge it into its base "
                "with `ryzjax merge`, and serve the result"
            )
        servable = {layer.name for block in self.blocks for layer in block}
        for layer in adapter.weights:
            if layer not in servable:
                raise ConfigError(
                    f"adapter {name!r} adapts {layer!r}; adapters are served for linear layers of blocks, without "
                    "routers and the head. Merge it into its base with `ryzjax merge`, and serve the result"
                )
        if adapter.max_rank > self.rank:
            raise ConfigError(
                f"adapter {name!r} has rank {adapter.max_rank}, but max_lora_rank is {self.rank}; start the server "
                f"with --max-lora-rank {adapter.max_rank}"
            )

    def _block_shapes(self, block: Sequence[SlotLayer]) -> BlockSlots:
        placement, dtype = self.model.placement, jnp.dtype(self.model.config.dtype)
        columns = self.slots * self.rank

        def one(
            shape: tuple[int, int], axes: tuple[str | None, str | None], units: tuple[int, int]
        ) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(shape, dtype, sharding=placement.sharding(axes, shape, units))

        return BlockSlots._make(
            [
                tuple(one((columns, x.shape[1]), (None, x.axes[1]), (1, x.units[1])) for x in block),
                tuple(one((x.shape[0], columns), (x.axes[0], None), (x.units[0], 1)) for x in block),
                jax.ShapeDtypeStruct((self.slots, len(block)), jnp.float32, sharding=placement.replicated),
            ]
        )


def _split_of(linear: Linear) -> tuple[tuple[str | None, str | None], tuple[int, int]]:
    """Returns the logical axes and the indivisible runs of a layer's weight."""
    weight = linear.weight
    if isinstance(weight, QuantizedWeight):
        row_axis, column_axis = weight.axes
        return (row_axis, column_axis), (weight.row_unit, weight.column_unit)
    metadata = weight.get_metadata()
    return metadata["axes"], metadata["units"]


def _is_finite(values: np.ndarray) -> bool:
    return bool(np.isfinite(values.astype(np.float32, copy=False)).all())
