"""Which implementation each op uses on this machine, and why: shown by `ryzjax info`."""

from __future__ import annotations

from dataclasses import dataclass

import jax

__all__ = ["OpChoice", "describe_ops"]


@dataclass(frozen=True, kw_only=True)
class OpChoice:
    """One op, the implementation that runs, and the reason."""

    op: str
    implementation: str
    reason: str


def describe_ops() -> list[OpChoice]:
    """The choice for every op of the model, on the default backend."""
    backend = jax.default_backend()
    xla = f"pure JAX compiled by XLA for {backend}; the only implementation of this version"
    ops = ("embed", "linear", "rms_norm", "rope", "write_kv", "paged_attention", "route_top_k", "sample")
    if backend == "cpu":
        grouped = "tiles", "a loop that reads only the experts that are hit; ragged_dot reads all of them on cpu"
    else:
        grouped = "ragged_dot", f"jax.lax.ragged_dot compiled by XLA for {backend}"
    return [
        *(OpChoice(op=op, implementation="xla", reason=xla) for op in ops),
        OpChoice(op="grouped_matmul", implementation=grouped[0], reason=grouped[1]),
    ]
