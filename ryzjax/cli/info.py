"""ryzjax info."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table

__all__ = ["Info"]


@dataclass(frozen=True, kw_only=True)
class Info:
    """Shows versions, devices, the CPU kernels that run, the model's shape, and what runs each op and why."""

    model: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="[MODEL]")] = None
    """Local directory, config.json, or Hugging Face id. Without it, only the machine is shown."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """See `ryzjax serve --help`."""
    layout: str = "single"
    """See `ryzjax serve --help`."""
    measure: bool = False
    """Also measure, in a few seconds, how fast this machine reads memory and multiplies with bf16, int8 and int4
    weights, with bf16 and with int8 activations. Stop other work first."""

    def run(self) -> int:
        """Prints the tables."""
        import jax

        from ryzjax.loading.weight_plan import auto_activations
        from ryzjax.native.library import describe_kernels

        console = Console()
        machine = _table("machine", "", "")
        machine.add_row("ryzjax", version("ryzjax"))
        machine.add_row("python", platform.python_version())
        for package in ("jax", "jaxlib", "flax", "numpy", "transformers", "tokenizers"):
            machine.add_row(package, version(package))
        kinds = ", ".join(sorted({device.device_kind for device in jax.devices()}))
        machine.add_row("devices", f"{len(jax.devices())} x {jax.default_backend()} ({kinds})")
        machine.add_row("native kernels", describe_kernels())
        activations, why = auto_activations()
        machine.add_row("--activations auto", f"{activations} for 4-bit weights, bf16 for others ({why})")
        console.print(machine)
        dtype = "bfloat16" if self.dtype == "auto" else self.dtype
        if self.model is not None:
            table, dtype = self._model_table(self.model)
            console.print(table)
            self._print_certificate(console, self.model)
        console.print(_ops_table(dtype))
        if self.measure:
            self._print_speed(console, activations)
        return 0

    def _print_speed(self, console: Console, activations: str) -> None:
        """Measures the machine, and prints the table and what `--activations auto` chooses."""
        from ryzjax.bench.machine import measure_products, product_table, stream_bytes_a_second, working_set_bytes

        memory = _table("memory", "", "")
        size = working_set_bytes()
        speed = stream_bytes_a_second(size) / 1e9
        memory.add_row(f"read by all cores, {size / 2**20:.0f} MiB", f"{speed:.1f} GB/s")
        console.print(memory)
        console.print(product_table(measure_products(num_bytes=size)))
        print(f"--activations auto takes {activations} for 4-bit weights here, and bf16 for int8 weights.")

    def _print_certificate(self, console: Console, name: str) -> None:
        from ryzjax.checkpoint.certificate import read_certificate
        from ryzjax.checkpoint.source import resolve_source
        from ryzjax.evaluation.report import certificate_table

        if Path(name).is_file():
            return
        certificate = read_certificate(resolve_source(name).directory)
        if certificate is not None:
            console.print(certificate_table(certificate))

    def _model_table(self, name: str) -> tuple[Table, str]:
        """Returns the table of a model, and the model's dtype."""
        from ryzjax.checkpoint.source import resolve_source
        from ryzjax.loading.model_config import read_model_config
        from ryzjax.loading.weight_plan import plan_weights
        from ryzjax.models.kv_cache import kv_page_bytes
        from ryzjax.models.registry import family_of
        from ryzjax.sharding import Layout, Placement

        source = resolve_source(name, load_format="dummy" if Path(name).is_file() else "auto")
        config = read_model_config(source, dtype=self.dtype)
        placement = Placement(Layout.load(self.layout))
        plan = plan_weights(source, config, placement).with_activations("auto")
        model = plan.model
        table = _table(f"model {name}", "", "")
        table.add_row("family", family_of(config))
        for field in ("dtype", "num_layers", "hidden_size", "intermediate_size", "num_heads"):
            table.add_row(field, str(getattr(config, field)))
        for field in ("num_kv_heads", "head_dim", "vocab_size", "max_position", "tie_embeddings"):
            table.add_row(field, str(getattr(config, field)))
        for rope in model.ropes:
            table.add_row("rope", str(rope))
        table.add_row("parameters", f"{model.num_parameters:,}")
        weight_bytes = sum(spec.nbytes for spec in model.weights.values())
        table.add_row("weights", f"{weight_bytes / 2**20:,.1f} MiB over {placement.num_devices} device(s)")
        table.add_row("activations", plan.activations)
        for dtype in dict.fromkeys((config.dtype, "int8", "fp8_e4m3")):
            size = kv_page_bytes(config, placement, dtype, 1)
            table.add_row(f"KV cache, {dtype}", f"{size:,} bytes a token and device")
        return table, config.dtype


def _ops_table(dtype: str) -> Table:
    from ryzjax.ops.dispatch import describe_ops

    table = _table(f"ops of a {dtype} model", "op", "call", "implementation", "why")
    for choice in describe_ops(dtype):
        table.add_row(choice.op, choice.call, choice.implementation, choice.reason)
    return table


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", show_header=any(columns))
    for column in columns:
        table.add_column(column)
    return table
