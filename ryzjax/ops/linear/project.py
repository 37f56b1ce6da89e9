"""project: y = x W^T for several weights with the same input, plain or quantized.

On a CPU one call of the native kernel multiplies all the weights that it supports. XLA multiplies the others, and it
multiplies plain weights where it is faster (`crossover`). With several devices, each device multiplies its own shards.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from ryzjax.native.library import isa
from ryzjax.native.linear import native_plain_refusal, native_project, native_quantized_refusal
from ryzjax.ops.dispatch import Kernel, Op, Probe
from ryzjax.ops.linear.crossover import CROSSOVERS
from ryzjax.ops.linear.quantized import permute_columns, project_quantized
from ryzjax.ops.linear.reference import project_plain
from ryzjax.qarray import QArray, QFormat
from ryzjax.sharding import Placement

__all__ = ["PROJECT", "Matrix", "native_refusal_of", "project", "project_on_device"]


class Matrix(NamedTuple):
    """A weight [N, K] and how it is split over devices.

    Attributes:
      array: the weight, which is split along no axis but those of `axes`.
      specs: its PartitionSpec, or the PartitionSpecs of the parts of a QArray.
      axes: the logical axes of N and K; None for an axis that is never split.
      units: the indivisible runs along N and K.
    """

    array: jax.Array | QArray
    specs: PartitionSpec | QArray
    axes: tuple[str | None, str | None]
    units: tuple[int, int]


def project(x: Float[Array, "T K"], matrices: Sequence[Matrix], placement: Placement) -> tuple[jax.Array, ...]:
    """Returns `x @ weight.T` for each matrix [N, K], accumulated in float32: one array [T, N] each.

    With several devices, the plain weights that no kernel of ours supports are left to XLA's partitioner. All others
    are multiplied shard by shard, because the partitioner would gather the operands of a kernel to every device.

    Args:
      x: activations, cast to a plain weight's dtype.
      matrices: the weights. Their K has the same logical axis.
      placement: the devices.
    """
    out: dict[int, jax.Array] = {}
    together: dict[int, Matrix] = {}
    for i, matrix in enumerate(matrices):
        if not isinstance(matrix.array, QArray):
            if _is_left_to_partitioner(x, matrix.array, placement):
                out[i] = project_plain(x, matrix.array)
            else:
                together[i] = matrix
        elif matrix.array.order is not None:
            permuted = permute_columns(x, matrix.array.order)
            (out[i],) = _project_shards(permuted, [_without_order(matrix)], placement)
        else:
            together[i] = matrix
    if together:
        products = _project_shards(x, list(together.values()), placement)
        out.update(zip(together, products, strict=True))
    return tuple(out[i] for i in range(len(matrices)))


def _is_left_to_partitioner(x: jax.Array, weight: jax.Array, placement: Placement) -> bool:
    if placement.num_devices == 1:
        return False
    return placement.platform != "cpu" or native_refusal_of(x, weight) is not None


def _without_order(matrix: Matrix) -> Matrix:
    array, specs = matrix.array, matrix.specs
    assert isinstance(array, QArray) and isinstance(specs, QArray)
    return matrix._replace(array=replace(array, order=None), specs=replace(specs, order=None))


def _project_shards(x: jax.Array, matrices: Sequence[Matrix], placement: Placement) -> tuple[jax.Array, ...]:
    in_axis = matrices[0].axes[1]
    unit = math.lcm(*(matrix.units[1] for matrix in matrices))
    summed_over = placement.mesh_axes(in_axis, x.shape[1] // unit) if in_axis else ()
    sharded = placement.per_shard(
        partial(project_on_device, summed_over=summed_over),
        in_specs=(
            placement.spec(("tokens", in_axis), x.shape, (1, unit)),
            [matrix.specs for matrix in matrices],
        ),
        out_specs=tuple(
            placement.spec(("tokens", m.axes[0]), (x.shape[0], m.array.shape[0]), (1, m.units[0])) for m in matrices
        ),
    )
    return sharded(x, [matrix.array for matrix in matrices])


def project_on_device(
    x: Float[Array, "T K"], weights: Sequence[jax.Array | QArray], *, summed_over: tuple[str, ...] = ()
) -> tuple[Float[Array, "T _"], ...]:
    """Returns `x @ weight.T` for each weight [N, K] on one device, accumulated in float32.

    With several devices, call it inside `shard_map`.

    Args:
      x: activations, cast to a plain weight's dtype.
      weights: plain weights, or quantized ones without `QArray.order`.
      summed_over: the mesh axes that split K inside `shard_map`. The results are summed over them.
    """
    kernels = [PROJECT.choose(x, (weight,)) for weight in weights]
    out: dict[int, jax.Array] = {}
    for chosen in dict.fromkeys(kernels):
        if chosen:
            places = [i for i, kernel in enumerate(kernels) if kernel == chosen]
            products = PROJECT.run(chosen, x, tuple(weights[i] for i in places))
            products = lax.psum(products, summed_over) if summed_over else products
            out.update(zip(places, products, strict=True))
    for i, weight in enumerate(weights):
        if i in out:
            continue
        if isinstance(weight, QArray):
            out[i] = project_quantized(x, weight, summed_over=summed_over)
        else:
            product = project_plain(x, weight)
            out[i] = lax.psum(product, summed_over) if summed_over else product
    return tuple(out[i] for i in range(len(weights)))


def native_refusal_of(x: jax.Array, weight: jax.Array | QArray) -> str | None:
    """Returns why the native kernel does not multiply `x` with `weight` on a CPU, or None if it does."""
    if isinstance(weight, QArray):
        return native_quantized_refusal(x.dtype, weight.format, x.shape[1])
    if reason := native_plain_refusal(x.dtype, weight.dtype):
        return reason
    rows = CROSSOVERS[str(isa())].plain_rows
    if rows is not None and x.shape[0] >= rows:
        return f"XLA multiplies bfloat16 faster from {rows} rows on ({isa()}; ryzjax/ops/linear/crossover.py)"
    return None


def _native_supports(x: jax.Array, weights: Sequence[jax.Array | QArray]) -> str | None:
    return next((reason for weight in weights if (reason := native_refusal_of(x, weight))), None)


def _by_xla(x: jax.Array, weights: Sequence[jax.Array | QArray]) -> tuple[jax.Array, ...]:
    return tuple(project_quantized(x, w) if isinstance(w, QArray) else project_plain(x, w) for w in weights)


def _probes(dtype: DTypeLike) -> list[Probe]:
    x = jax.ShapeDtypeStruct((8, 128), jnp.dtype(dtype))
    formats = {
        "int8 weights": QFormat(kind="int8"),
        "int4 weights, groups of 32": QFormat(kind="int4", group=32, pack=32),
        "NF4 weights, groups of 64": QFormat(kind="float4", group=64, pack=64),
        "fp8 weights": QFormat(kind="float8"),
        "int8 weights, int8 activations": QFormat(kind="int8", activations="int8_groups"),
        "int4 weights, groups of 32, int8 activations": QFormat(
            kind="int4", group=32, pack=32, activations="int8_groups"
        ),
    }
    plain = jax.ShapeDtypeStruct((128, 128), jnp.dtype(dtype))
    probes = [Probe(label=f"{jnp.dtype(dtype).name} weights", arrays=(x, (plain,)))]
    for label, format in formats.items():
        leaves = {name: jax.ShapeDtypeStruct(*leaf) for name, leaf in format.leaf_shapes((128, 128)).items()}
        weight = QArray(format=format, **cast("dict[str, jax.Array]", leaves))
        probes.append(Probe(label=label, arrays=(x, (weight,))))
    return probes


PROJECT = Op(
    "project",
    reference=_by_xla,
    kernels=(
        Kernel(
            name="native",
            platform="cpu",
            supports=_native_supports,
            run=native_project,
            note="one call for all weights with the same input",
        ),
    ),
    probes=_probes,
)
