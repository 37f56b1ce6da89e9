"""Random quantized matrices of every format."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.qarray import LEAVES, QArray, QFormat, pack_nibbles

FORMATS: dict[str, QFormat] = {
    "int4": QFormat(kind="int4", group=32, pack=32, scale_dtype="bfloat16"),
    "int4_zeros": QFormat(kind="int4", group=16, pack=16, scale_dtype="float16", has_zeros=True),
    "int4_rows": QFormat(kind="int4", pack=32),
    "int4_order": QFormat(kind="int4", group=32, pack=32, has_order=True),
    "int8": QFormat(kind="int8", group=32, scale_dtype="bfloat16"),
    "int8_zeros": QFormat(kind="int8", group=32, has_zeros=True),
    "int4_float_zeros": QFormat(
        kind="int4", group=32, pack=32, scale_dtype="float16", has_zeros=True, zero_dtype="float16"
    ),
    "int8_halves": QFormat(kind="int8", group=16, scale_dtype="float16", has_zeros=True, zero_dtype="float16"),
    "int8_rows": QFormat(kind="int8"),
    "w8a8": QFormat(kind="int8", activations="int8"),
    "nf4": QFormat(kind="float4", group=32, pack=32),
    "nf4_nested": QFormat(kind="float4", group=32, pack=32, scale_dtype="nested"),
    "float8_blocks": QFormat(kind="float8", group=32, rows=32),
    "float8_rows": QFormat(kind="float8", scale_dtype="bfloat16"),
    "float8_tensor": QFormat(kind="float8", rows=None),
}


def integers(rng: np.random.Generator, format: QFormat, shape: tuple[int, ...]) -> np.ndarray:
    """Returns random unpacked values [..., N, K] that the format can hold."""
    if format.pack:
        return rng.integers(0, 16, shape, dtype=np.uint8)
    if format.kind == "int8":
        return rng.integers(-128, 128, shape).astype(np.int8)
    return np.asarray(jnp.asarray(rng.standard_normal(shape) * 3, jnp.float8_e4m3fn)).view(np.uint8)


def random_leaves(rng: np.random.Generator, format: QFormat, shape: tuple[int, ...]) -> dict[str, np.ndarray]:
    """Returns random leaves by name as numpy arrays. bfloat16 scales are their bits."""
    leaves = {}
    for name, (leaf_shape, dtype) in format.leaf_shapes(shape).items():
        if name == "values":
            values = integers(rng, format, shape)
            leaves[name] = pack_nibbles(values, format.pack) if format.pack else values
        elif name == "scales" and dtype == jnp.uint16:
            scales = jnp.asarray(rng.uniform(0.005, 0.02, leaf_shape), jnp.bfloat16)
            leaves[name] = np.asarray(scales.view(jnp.uint16))
        elif name == "scales" and dtype != jnp.uint8:
            leaves[name] = rng.uniform(0.005, 0.02, leaf_shape).astype(dtype)
        elif name == "zeros" and dtype == jnp.float16:
            leaves[name] = rng.uniform(-4, 20, leaf_shape).astype(dtype)
        elif name in ("scales", "zeros"):
            leaves[name] = rng.integers(0, 16 if name == "zeros" else 256, leaf_shape).astype(dtype)
        elif name == "order":
            leaves[name] = rng.permutation(leaf_shape[-1]).astype(np.int32)
        elif name in ("scale_codes", "scale_blocks"):
            leaves[name] = rng.uniform(0.05, 0.15, leaf_shape).astype(dtype)
        else:
            leaves[name] = rng.standard_normal(leaf_shape).astype(dtype) * 0.01
    return leaves


def random_qarray(rng: np.random.Generator, format: QFormat, shape: tuple[int, ...]) -> QArray:
    """Returns a QArray of random values."""
    leaves = {name: jnp.asarray(value) for name, value in random_leaves(rng, format, shape).items()}
    return QArray(format=format, **leaves)


def expected(weight: QArray) -> np.ndarray:
    """Returns the matrix in float64 [..., N, K], computed value by value from the formulas in `ryzjax.qarray`."""
    fmt = weight.format
    leaves: dict[str, np.ndarray] = {}
    for name in LEAVES:
        leaf = getattr(weight, name)
        if isinstance(leaf, jax.Array):
            leaves[name] = np.asarray(leaf.view(jnp.bfloat16) if leaf.dtype == jnp.uint16 else leaf)
    if fmt.kind == "float8":
        leaves["values"] = leaves["values"].view(jnp.float8_e4m3fn)
    *_, n, k = weight.shape
    out = np.zeros(weight.shape, np.float64)
    scales = leaves["scales"].astype(np.float64)
    if fmt.scale_dtype == "nested":
        flat = leaves["scales"].reshape(-1)
        nested = [
            float(leaves["scale_codes"][code]) * float(leaves["scale_blocks"][i // 256]) + float(leaves["scale_offset"])
            for i, code in enumerate(flat)
        ]
        scales = np.array(nested).reshape(leaves["scales"].shape)
    for row in range(n):
        for column in range(k):
            at = (..., row // (fmt.rows or n), column // (fmt.group or k))
            if fmt.pack:
                run, inside = divmod(column, fmt.pack)
                high, byte = divmod(inside, fmt.pack // 2)
                q = (leaves["values"][..., row, run * fmt.pack // 2 + byte] >> (4 * high)) & 15
            else:
                q = leaves["values"][..., row, column]
            if "codebook" in leaves:
                value = leaves["codebook"][q].astype(np.float64)
            elif "zeros" in leaves:
                value = q.astype(np.float64) - leaves["zeros"][at].astype(np.float64)
            else:
                value = q.astype(np.float64) - (8 if fmt.kind == "int4" else 0)
            here = leaves["order"][column] if "order" in leaves else column
            out[..., row, here] = value * scales[at]
    return out
