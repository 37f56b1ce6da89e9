"""AdapterMemory: the slots of adapters on the device, and the programs that write them."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.lora.slot_plan import SlotPlan
from ryzjax.lora.slots import BlockSlots, write_slot
from ryzjax.serving.device.program import Program
from ryzjax.serving.messages.adapter import ServedAdapter

__all__ = ["AdapterMemory"]


class AdapterMemory:
    """The arrays of all slots. Every step reads them.

    Args:
      plan: the shapes of the arrays.
    """

    def __init__(self, plan: SlotPlan):
        self.plan = plan
        self._blocks: tuple[BlockSlots, ...] = ()

    @property
    def blocks(self) -> tuple[BlockSlots, ...]:
        """The arrays after the last `write`."""
        return self._blocks

    def allocate(self) -> None:
        """Creates the arrays, filled with zeros."""
        self._blocks = self.plan.empty()

    def write(self, programs: Mapping[int, jax.stages.Compiled], slot: int, adapter: ServedAdapter) -> None:
        """Starts writing an adapter into a slot, block by block. Steps that are dispatched afterwards read it.

        Args:
          programs: the compiled programs of `program`, by the number of the block.
          slot: the slot to write.
          adapter: the adapter.
        """
        index = np.int32(slot)
        parts = zip(self.plan.kind_of, self._blocks, adapter.values, adapter.scales, strict=True)
        self._blocks = tuple(programs[kind](block, values, scales, index) for kind, block, values, scales in parts)

    def program(self, block: int) -> Program:
        """Declares the program that writes a block of this kind. XLA takes many times as long for a whole model."""
        plan, shapes = self.plan, self.plan.shapes[block]
        return Program(
            key=("set_adapter", block),
            function=partial(write_slot, layers=plan.blocks[block], rank=plan.rank),
            arguments=(
                shapes,
                *plan.packed_shapes(block),
                jax.ShapeDtypeStruct((), jnp.int32, sharding=plan.model.placement.replicated),
            ),
            out_shardings=jax.tree.map(lambda array: array.sharding, shapes),
            donated=(0,),
        )
