"""AdapterMemory: the adapters' slots on the device, and the compiled programs that write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.lora.slot_plan import SlotPlan
from ryzjax.lora.slots import BlockSlots, write_slot
from ryzjax.serving.messages.adapter import ServedAdapter

__all__ = ["AdapterMemory"]


class AdapterMemory:
    """The arrays of all slots, which each step reads.

    Args:
      plan: what they are.
    """

    def __init__(self, plan: SlotPlan):
        self.plan = plan
        self._blocks: tuple[BlockSlots, ...] = ()

    @property
    def blocks(self) -> tuple[BlockSlots, ...]:
        """The arrays as the last `write` leaves them."""
        return self._blocks

    def allocate(self) -> None:
        """Makes the arrays, of zeros."""
        self._blocks = self.plan.empty()

    def write(self, programs: Mapping[int, jax.stages.Compiled], slot: int, adapter: ServedAdapter) -> None:
        """Starts writing an adapter into a slot, block by block; steps dispatched after it read it there.

        Args:
          programs: of `lower`, by the number of the block.
        """
        index = np.int32(slot)
        parts = zip(self.plan.kind_of, self._blocks, adapter.values, adapter.scales, strict=True)
        self._blocks = tuple(programs[kind](block, values, scales, index) for kind, block, values, scales in parts)

    def lower(self, block: int) -> Callable[[], jax.stages.Lowered]:
        """The program that writes a block of this kind; one for the whole model would take XLA many times as long."""
        plan, shapes = self.plan, self.plan.shapes[block]
        write = partial(write_slot, layers=plan.blocks[block], rank=plan.rank)
        out = jax.tree.map(lambda array: array.sharding, shapes)
        index = jax.ShapeDtypeStruct((), jnp.int32, sharding=plan.model.placement.replicated)
        return lambda: jax.jit(write, donate_argnums=0, out_shardings=out).lower(
            shapes, *plan.packed_shapes(block), index
        )
