"""Chooses the implementation of each op: a kernel of ours where one supports the call, XLA elsewhere.

An `Op` has a reference in JAX, which takes every call, and kernels in the order of preference. Each kernel belongs to
one platform and says which calls it supports. The choice is made while a program is traced, from shapes and dtypes
alone. The platform is known only when the program is lowered, so the program holds one branch for each platform until
then (`jax.lax.platform_dependent`).

A new kernel is one more `Kernel` in the list of its op. `ryzjax info` prints `describe_ops`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import Any, Generic, Literal, ParamSpec, TypeVar

import jax
from jax import lax
from jax.typing import DTypeLike

from ryzjax.native.library import isa

__all__ = ["Kernel", "Op", "OpChoice", "Probe", "describe_ops", "reference_only"]

_log = logging.getLogger(__name__)

Params = ParamSpec("Params")
Out = TypeVar("Out")
Platform = Literal["cpu", "cuda"]
_OP_MODULES = (
    "ryzjax.ops.embedding",
    "ryzjax.ops.norm",
    "ryzjax.ops.rope",
    "ryzjax.ops.linear.project",
    "ryzjax.ops.linear.quantized",
    "ryzjax.ops.attention.attend",
    "ryzjax.ops.attention.segment_attention",
    "ryzjax.ops.moe.routing",
    "ryzjax.ops.moe.grouped_matmul",
    "ryzjax.ops.sampling.argmax",
    "ryzjax.ops.sampling.sampling",
)
"""The modules that define ops, in the order of `describe_ops`."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One implementation of an op for one platform.

    Attributes:
      name: the name that `ryzjax info` shows, such as "native".
      platform: the platform it runs on.
      supports: takes the arguments of the op; returns why the kernel cannot take the call, or None if it can.
      run: takes the arguments of the op.
      note: one phrase about what it does, for `ryzjax info`.
    """

    name: str
    platform: Platform
    supports: Callable[..., str | None]
    run: Callable[..., Any]
    note: str


@dataclass(frozen=True, kw_only=True)
class Probe:
    """An example call, from which `describe_ops` reads the choice.

    Attributes:
      label: what is special about the call, such as "int8 weights".
      arrays: abstract arrays.
      settings: the keyword arguments.
    """

    label: str
    arrays: tuple[object, ...]
    settings: Mapping[str, object] = field(default_factory=dict)


class Op(Generic[Params, Out]):
    """An operation with several implementations. Calling it runs the best one that supports the call.

    A kernel is opaque to XLA's partitioner, which would gather its operands to every device. With several devices, call
    an op inside `shard_map`; the functions beside each op do so.

    Args:
      name: the name that `ryzjax info` shows.
      reference: the implementation in JAX. It takes every call and defines the result.
      kernels: the kernels in the order of preference.
      probes: returns example calls for a model's dtype.
      reference_note: one phrase about the reference, for `ryzjax info`.
    """

    def __init__(
        self,
        name: str,
        *,
        reference: Callable[Params, Out],
        kernels: Sequence[Kernel] = (),
        probes: Callable[[DTypeLike], Sequence[Probe]] | None = None,
        reference_note: str = "compiled by XLA",
    ):
        self.name = name
        self.reference = reference
        self.kernels = tuple(kernels)
        self.reference_note = reference_note
        self._probes = probes
        self._logged: set[tuple[str, str]] = set()
        _OPS.append(self)

    def __call__(self, *args: Params.args, **kwargs: Params.kwargs) -> Out:
        return self.run(self.choose(*args, **kwargs), *args, **kwargs)

    def choose(self, *arrays: Any, **settings: Any) -> tuple[Kernel, ...]:
        """Returns the kernels that take a call, at most one for each platform. Logs each new refusal once."""
        chosen: dict[str, Kernel] = {}
        for kernel in self.kernels:
            if kernel.platform in chosen:
                continue
            reason = kernel.supports(*arrays, **settings)
            if reason is None:
                chosen[kernel.platform] = kernel
            elif (kernel.name, reason) not in self._logged:
                self._logged.add((kernel.name, reason))
                _log.debug("%s: the %s kernel does not take a call: %s", self.name, kernel.name, reason)
        return tuple(chosen.values())

    def run(self, kernels: Sequence[Kernel], *arrays: Any, **settings: Any) -> Out:
        """Runs one of `kernels` on its own platform and the reference on all other platforms.

        Args:
          kernels: a result of `choose`.
          arrays: the positional arguments of the op.
          settings: the keyword arguments of the op, which are static.
        """
        reference = partial(self.reference, **settings)
        if not kernels:
            return reference(*arrays)
        branches = {kernel.platform: partial(kernel.run, **settings) for kernel in kernels}
        return lax.platform_dependent(*arrays, default=reference, **branches)

    def describe(self, dtype: DTypeLike, platform: str) -> list[OpChoice]:
        """Returns what runs for each example call on a platform, and why."""
        return [self._describe(probe, platform) for probe in self.probes(dtype)]

    def probes(self, dtype: DTypeLike) -> Sequence[Probe]:
        """Returns the example calls of `describe`."""
        return self._probes(dtype) if self._probes else [Probe(label="", arrays=())]

    def _describe(self, probe: Probe, platform: str) -> OpChoice:
        reasons: list[str] = []
        for kernel in self.kernels:
            if kernel.platform != platform:
                reasons.append(f"the {kernel.name} kernel is for {kernel.platform}")
                continue
            reason = kernel.supports(*probe.arrays, **probe.settings)
            if reason is None:
                name = f"{kernel.name} ({isa()})" if kernel.name == "native" else kernel.name
                return OpChoice(op=self.name, call=probe.label, implementation=name, reason=kernel.note)
            reasons.append(f"{kernel.name}: {reason}")
        return OpChoice(
            op=self.name, call=probe.label, implementation="xla", reason="; ".join([self.reference_note, *reasons])
        )


_OPS: list[Op] = []


@dataclass(frozen=True, kw_only=True)
class OpChoice:
    """What runs for one kind of call.

    Attributes:
      op: the name of the op.
      call: what is special about the call, or "".
      implementation: "xla", or the name of a kernel.
      reason: why it runs.
    """

    op: str
    call: str
    implementation: str
    reason: str


def reference_only(name: str) -> Callable[[Callable[Params, Out]], Callable[Params, Out]]:
    """Lists a function as an op that has no kernel yet. The function itself is returned unchanged."""

    def register(reference: Callable[Params, Out]) -> Callable[Params, Out]:
        Op(name, reference=reference)
        return reference

    return register


def describe_ops(dtype: DTypeLike = "bfloat16") -> list[OpChoice]:
    """Returns what runs for every op on the default backend.

    Args:
      dtype: the dtype of the model.
    """
    for module in _OP_MODULES:
        import_module(module)
    platform = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    return [choice for op in _OPS for choice in op.describe(dtype, platform)]
