"""Which implementation each op uses on this machine, and why: shown by `ryzjax info`."""

from __future__ import annotations

from dataclasses import dataclass

import jax

from ryzjax.native.library import isa, native_refusal
from ryzjax.ops.linear.crossover import CROSSOVERS

__all__ = ["OpChoice", "describe_ops"]

# Op -> what the native kernel takes; all else is left to XLA.
_NATIVE = {
    "linear": "bfloat16 weights",
    "quantized_linear": "bfloat16 activations with int8 and 4-bit weights in groups of 32 columns and more",
    "attend": "queries in float32 or bfloat16, any KV cache",
    "segment_attention": "float32 and bfloat16, forward and backward",
    "rms_norm": "float32 and bfloat16, on one device",
}
_XLA = ("embed", "rope", "route_top_k", "sample")


@dataclass(frozen=True, kw_only=True)
class OpChoice:
    """One op, the implementation that runs, and the reason."""

    op: str
    implementation: str
    reason: str


def describe_ops() -> list[OpChoice]:
    """The choice for every op of the model, on the default backend."""
    backend = jax.default_backend()
    xla = f"pure JAX compiled by XLA for {backend}"
    refusal = f"the native kernels are for a CPU, this is {backend}" if backend != "cpu" else native_refusal()
    if refusal is None:
        name = str(isa())
        rows = CROSSOVERS[name].plain_rows
        takes = _NATIVE | ({"linear": f"bfloat16 weights and less than {rows} rows"} if rows else {})
        native = [
            OpChoice(op=op, implementation="native", reason=f"{name} kernels for {what}; else XLA")
            for op, what in takes.items()
        ]
    else:
        native = [OpChoice(op=op, implementation="xla", reason=f"{xla}; {refusal}") for op in _NATIVE]
    if backend == "cpu":
        grouped = "tiles", "a loop that reads only the experts that are hit; ragged_dot reads all of them on cpu"
    else:
        grouped = "ragged_dot", f"jax.lax.ragged_dot compiled by XLA for {backend}"
    return [
        *native,
        *(OpChoice(op=op, implementation="xla", reason=f"{xla}; the only implementation") for op in _XLA),
        OpChoice(op="grouped_matmul", implementation=grouped[0], reason=grouped[1]),
    ]
