"""plan_training: the memory that a run needs, read from its compiled step. No weights are read."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import jax
import numpy as np
from rich.table import Table

from ryzjax.checkpoint.source import resolve_source
from ryzjax.loading.model_config import read_model_config
from ryzjax.loading.weight_plan import plan_weights
from ryzjax.lora.config import LoraConfig
from ryzjax.models.stacked import StackedModel
from ryzjax.sharding import Layout, Placement
from ryzjax.sharding.host_memory import has_host_memory, is_host_sharding
from ryzjax.training.config import BaseConfig, TrainConfig
from ryzjax.training.model import FullModel, LoraModel
from ryzjax.training.optimizers.config import OptimizerConfig
from ryzjax.training.run.run import make_programs
from ryzjax.training.start.dtype import DtypeChoice, choose_dtype
from ryzjax.training.start.shapes import adapter_shapes, master_shapes

__all__ = ["MemoryPlan", "plan_table", "plan_training"]

_ANY_STEPS = 1000
"""The number of steps of a run changes no byte of its step."""


@dataclass(frozen=True, kw_only=True)
class MemoryPlan:
    """Bytes on one device, as XLA plans the compiled step for the platform it was compiled for.

    Attributes:
      platform: "cpu" or "gpu".
      dtype_message: The dtype that the step computes in, and the reason.
      frozen_bytes: Bytes of the frozen base: "layers", "embedding and head".
      host_bytes: Bytes of frozen layers in host memory, which take no device memory.
      trained_bytes: Bytes of the float32 masters of the adapter or of all weights.
      optimizer_bytes: Bytes of the optimizer's state.
      batch_bytes: Bytes of the batch.
      temporary_bytes: Bytes of gradients, kept activations and everything else that exists only within a step,
        including layers that are being copied from the host.
      total_bytes: Bytes at the peak of a step. Donated arrays count once.
      remedies: Changes that need less memory, cheapest first.
    """

    platform: str
    dtype_message: str
    frozen_bytes: dict[str, int]
    host_bytes: int
    trained_bytes: int
    optimizer_bytes: int
    batch_bytes: int
    temporary_bytes: int
    total_bytes: int
    remedies: tuple[str, ...]


def plan_training(
    base: BaseConfig,
    *,
    lora: LoraConfig | None,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    sequence_tokens: int,
) -> MemoryPlan:
    """Compiles the step of a run from shapes alone. With `load_format="dummy"` a directory's config.json is enough.

    Raises:
      ConfigError: A setting contradicts another or does not fit the model.
      UnsupportedModelError: The model's family or a setting of it is not supported.
      LayoutError: The layout is invalid or does not fit the model.
    """
    source = resolve_source(base.model, revision=base.model_revision, load_format=base.load_format)
    choice = choose_dtype(base.dtype)
    config = read_model_config(source, dtype=choice.dtype)
    placement = Placement(Layout.load(base.layout))
    abstract = plan_weights(source, config, placement, weights=base.weights, group=base.weights_group).model
    if train.offload == "frozen" and lora is not None:
        abstract = abstract.with_layers_on_host()
    stacked = StackedModel(abstract)
    options = {"remat": train.remat, "remat_layers": train.remat_layers, "mlp_rows": train.mlp_rows}
    if lora is None:
        train.check_trains_all()
        model = FullModel(stacked=stacked, **options)  # pyright: ignore[reportArgumentType]
        params = master_shapes(stacked)
    else:
        layers = lora.choose(abstract.linears)
        model = LoraModel(stacked=stacked, lora=lora, layers=layers, **options)  # pyright: ignore[reportArgumentType]
        params = adapter_shapes(model)
    programs = make_programs(
        model,
        params,
        optimizer=optimizer,
        train=train,
        sequence_tokens=sequence_tokens,
        total_steps=_ANY_STEPS,
    )
    memory = programs.compile_train().memory_analysis()
    assert memory is not None, "XLA has no memory analysis for this platform"
    frozen: dict[str, int] = {"layers": 0, "embedding and head": 0}
    host = 0
    for name, shape in programs.frozen.weights.items():
        if is_host_sharding(shape.sharding):
            host += _device_bytes(shape)
        else:
            frozen["embedding and head" if name in stacked.outer else "layers"] += _device_bytes(shape)
    frozen["layers"] += sum(_device_bytes(shape) for shape in jax.tree.leaves(programs.frozen.row_norms))
    arguments, temporaries = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    if not memory.host_argument_size_in_bytes:
        arguments -= host  # On a CPU, XLA counts host memory as device memory.
    return MemoryPlan(
        platform=placement.platform,
        dtype_message=choice.message(config.dtype),
        frozen_bytes=frozen,
        host_bytes=host,
        trained_bytes=_tree_bytes(programs.state.params),
        optimizer_bytes=_tree_bytes(programs.state.optimizer),
        batch_bytes=_tree_bytes(programs.batch),
        temporary_bytes=temporaries,
        total_bytes=arguments + temporaries + memory.output_size_in_bytes - memory.alias_size_in_bytes,
        remedies=tuple(_remedies(base, choice, lora, optimizer, train, sequence_tokens, placement)),
    )


def plan_table(plan: MemoryPlan) -> Table:
    """Returns the plan as a table for people."""
    table = Table(title=f"Memory of a step on each device, compiled for {plan.platform}", title_justify="left")
    table.add_column("what")
    table.add_column("bytes", justify="right")
    table.add_column("GB", justify="right")

    def row(what: str, count: int, *, end: bool = False) -> None:
        table.add_row(what, f"{count:,}", f"{count / 1e9:.3f}", end_section=end)

    for what, count in plan.frozen_bytes.items():
        row(f"frozen {what}", count)
    row("trained, float32", plan.trained_bytes)
    row("optimizer state", plan.optimizer_bytes)
    row("batch", plan.batch_bytes)
    copied_layers = ", layers copied from the host" if plan.host_bytes else ""
    row(f"temporaries: gradients, activations{copied_layers}", plan.temporary_bytes, end=True)
    row("total", plan.total_bytes, end=bool(plan.host_bytes))
    if plan.host_bytes:
        row("frozen layers in host memory", plan.host_bytes)
    if plan.remedies:
        table.caption = "To save memory: " + "; ".join(plan.remedies)
        table.caption_justify = "left"
    return table


def _remedies(
    base: BaseConfig,
    choice: DtypeChoice,
    lora: LoraConfig | None,
    optimizer: OptimizerConfig,
    train: TrainConfig,
    sequence_tokens: int,
    placement: Placement,
) -> Iterator[str]:
    if choice.is_for_speed:
        yield "compute in bfloat16 (--dtype bfloat16; slower on this CPU)"
    if lora is None:
        yield "train an adapter (--method lora)"
    elif base.weights in ("auto", "bf16", "int8"):
        yield "quantize the frozen base to 4 bits (--weights int4 --weights-group 128)"
    if optimizer.optimizer in ("adamw", "muon"):
        yield "8-bit optimizer state (--optimizer adamw8bit)"
    if train.remat != "full":
        yield "keep only the inputs of layers (--remat full)"
    elif train.remat_layers == 1:
        yield "keep only the input of every 4th layer (--remat-layers 4; a quarter slower)"
    if train.batch_rows > (1 if train.objective == "sft" else 2):
        rows = train.batch_rows // 2
        yield f"half the rows, accumulated twice as often (--batch-rows {rows} --accumulate {2 * train.accumulate})"
    if train.mlp_rows is None and train.batch_rows * sequence_tokens > 128:
        yield "run MLPs on fewer tokens at a time (--mlp-rows 128)"
    if train.loss_chunk_tokens > 64:
        yield "compute fewer logits at a time (--loss-chunk-tokens 64)"
    if lora is not None and train.offload == "none" and train.remat == "full" and has_host_memory(placement):
        yield "keep the frozen layers in host memory (--offload frozen; slow with few tokens per step)"


def _tree_bytes(shapes: object) -> int:
    return sum(_device_bytes(shape) for shape in jax.tree.leaves(shapes))


def _device_bytes(shape: jax.Array | jax.ShapeDtypeStruct) -> int:
    """Returns the bytes of one device's shard."""
    sharding = shape.sharding
    local = shape.shape if sharding is None else sharding.shard_shape(shape.shape)
    return math.prod(local) * np.dtype(shape.dtype).itemsize
