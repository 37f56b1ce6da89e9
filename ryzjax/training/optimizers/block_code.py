"""An 8-bit code for arrays: the dynamic tree code of Dettmers et al. (arXiv:2110.02861), in blocks of 256 with one
scale.

A number is divided by the largest magnitude of its block and written as a decade and a place in that decade. Larger
decades have more bits for the place: in the unsigned code 10^-1..1 has 128 steps, 10^-2..10^-1 has 64, and so on down
to 2 in 10^-7..10^-6. The signed code has half as many steps. Two more codes stand for 0 and exactly 1: code 0, and the
code of all ones (unsigned) or of a lone sign bit (signed). Every other code stands for the middle of its step. Encoding
computes the nearest code in closed form, without a table.

Codes have the shape of the array, so they are sharded like it. Blocks lie along the last axis if 256 divides it; a
shard that holds a multiple of 256 along that axis holds whole blocks and encodes them alone. Otherwise (the B of a
LoRA, [N, r]) the last two axes are flattened for this purpose, and the last block may be short.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

__all__ = ["BLOCK_SIZE", "BlockCoded", "code_values", "decode", "encode", "zeros_coded"]

BLOCK_SIZE = 256
"""Numbers that share a scale."""

_DECADES = 7


@partial(jax.tree_util.register_dataclass, data_fields=["codes", "scales"], meta_fields=[])
@dataclass(frozen=True, kw_only=True)
class BlockCoded:
    """An array in 8 bits per number.

    Attributes:
      codes: uint8, in the array's shape [..., K].
      scales: float32, the largest magnitude of each block: [..., K / 256], or [..., blocks] if the last two axes are
        flattened.
    """

    codes: jax.Array
    scales: jax.Array


def code_values(*, signed: bool) -> np.ndarray:
    """Returns the value of each of the 256 codes, relative to the scale of the block: float32 [256]."""
    values = np.zeros(256)
    for decade in range(_DECADES):
        steps = 2 ** (decade + (not signed))
        first = steps - (not signed)
        values[first : first + steps] = 10.0 ** (decade - 6) * (0.1 + 0.9 * (np.arange(steps) + 0.5) / steps)
    if signed:
        values[129:] = -values[1:128]
        values[128] = 1.0
    else:
        values[255] = 1.0
    return values.astype(np.float32)


def zeros_coded(shape: tuple[int, ...]) -> BlockCoded:
    """Returns an array of zeros."""
    return BlockCoded(codes=jnp.zeros(shape, jnp.uint8), scales=jnp.zeros(_blocks_shape(shape)[:-1], jnp.float32))


def encode(x: Float[Array, "*shape"], *, signed: bool, keep_positive: bool = False) -> BlockCoded:
    """Encodes each number as its nearest code.

    Args:
      x: float32, of rank 1 or more. Not negative if `signed` is false.
      signed: Whether the code has negative numbers.
      keep_positive: Encode numbers above zero as at least the smallest positive code, for denominators.
    """
    blocks = _to_blocks(x)
    scales = jnp.max(jnp.abs(blocks), axis=-1)
    # A block of zeros has scale zero. Any nonzero divisor keeps its numbers zero.
    relative = blocks / jnp.where(scales > 0, scales, 1.0)[..., None]
    codes = _codes(jnp.abs(relative), signed=signed, keep_positive=keep_positive)
    if signed:
        # Negative numbers have no code for exactly -1 and none for zero.
        negative = jnp.where(codes == 128, 255, codes | 128)
        codes = jnp.where((relative < 0) & (codes > 0), negative, codes)
    return BlockCoded(codes=_from_blocks(codes.astype(jnp.uint8), x.shape), scales=scales)


def decode(coded: BlockCoded, *, signed: bool) -> Float[Array, ...]:
    """Returns the float32 array that codes and scales stand for."""
    values = jnp.asarray(code_values(signed=signed))[_to_blocks(coded.codes)]
    return _from_blocks(values * coded.scales[..., None], coded.codes.shape)


def _codes(x: Float[Array, "*shape"], *, signed: bool, keep_positive: bool) -> Int[Array, "*shape"]:
    """Returns the int32 codes nearest to numbers from 0 to 1."""
    values = code_values(signed=signed)
    positive = values[: 128 if signed else 255]
    firsts = [2**d if signed else 2 ** (d + 1) - 1 for d in range(_DECADES)]
    # The border of two decades is halfway between the last value of one and the first of the next.
    decade = jnp.zeros(x.shape, jnp.int32)
    power = jnp.full(x.shape, 1e6, jnp.float32)
    for d in range(1, _DECADES):
        above = x >= np.float32((positive[firsts[d] - 1] + positive[firsts[d]]) / 2)
        decade = jnp.where(above, d, decade)
        power = jnp.where(above, np.float32(10.0 ** (6 - d)), power)
    steps = jnp.left_shift(1, decade if signed else decade + 1)
    place = jnp.floor((x * power - 0.1) * (steps.astype(jnp.float32) / 0.9)).astype(jnp.int32)
    codes = steps - int(not signed) + jnp.clip(place, 0, steps - 1)
    zero = x <= 0 if keep_positive else x < positive[1] / 2
    return jnp.where(zero, 0, jnp.where(x >= (positive[-1] + 1) / 2, 128 if signed else 255, codes))


def _blocks_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    *rest, k = shape
    if k % BLOCK_SIZE == 0:
        return (*rest, k // BLOCK_SIZE, BLOCK_SIZE)
    return (*rest[:-1], math.ceil(math.prod(rest[-1:]) * k / BLOCK_SIZE), BLOCK_SIZE)


def _to_blocks(x: jax.Array) -> jax.Array:
    shape = _blocks_shape(x.shape)
    outer = len(shape) - 2
    if math.prod(shape) == x.size:
        return x.reshape(shape)
    flat = x.reshape(*shape[:outer], math.prod(x.shape[outer:]))
    short = shape[-2] * BLOCK_SIZE - flat.shape[-1]
    return jnp.pad(flat, [(0, 0)] * outer + [(0, short)]).reshape(shape)


def _from_blocks(blocks: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    if blocks.size == math.prod(shape):
        return blocks.reshape(shape)
    outer = blocks.ndim - 2
    flat = blocks.reshape(*blocks.shape[:outer], blocks.shape[-2] * BLOCK_SIZE)
    return flat[..., : math.prod(shape[outer:])].reshape(shape)
