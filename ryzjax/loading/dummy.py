"""Random weights of a model's shape, for benchmarks and for tests that do not measure quality."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np

from ryzjax.errors import ConfigError
from ryzjax.loading.buffers import aligned_empty
from ryzjax.models.weight_spec import WeightSpec

__all__ = ["dummy_weights"]

_SCALE = 0.02
_UNIFORM_DEVIATION = 4.6
"""The standard deviation of uniform integers from -8 to 7."""
_NO_NAN = 0xF7
"""A mask for random bytes. It clears one bit, so that no byte is a float8 NaN (0x7F or 0xFF)."""
_BLOCK_ELEMENTS = 2**20


def dummy_weights(wanted: Mapping[str, WeightSpec], seed: int) -> dict[str, jax.Array]:
    """Draws normal weights with standard deviation 0.02. Norm weights are 1.

    Quantized weights have uniformly random bits, and scales that give them about the same standard deviation.

    Values depend on the seed alone, not on threads or sharding: each tensor is drawn whole, in blocks that have their
    own generator. The host holds one tensor at a time beside the model.

    Args:
      wanted: Our weight name -> its shape, dtype and sharding.
      seed: The random seed, 0 or more.

    Raises:
      ConfigError: The seed is negative.
    """
    if seed < 0:
        raise ConfigError(f"seed={seed} is negative; expected 0 or more for random weights")
    weights: dict[str, jax.Array] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for name, spec in wanted.items():
            values = _draw(name, spec, seed, pool).view(spec.stored_dtype)
            array = jax.make_array_from_callback(spec.shape, spec.sharding, lambda index, v=values: v[index])
            weights[name] = array.block_until_ready()
    return weights


def _draw(name: str, spec: WeightSpec, seed: int, pool: ThreadPoolExecutor) -> np.ndarray:
    values = aligned_empty(spec.shape, np.dtype(spec.dtype))
    constant = _constant(name, spec)
    if constant is not None:
        values[...] = constant
        return values
    flat = values.reshape(-1)
    key = zlib.crc32(name.encode())

    def fill(block: int) -> None:
        part = flat[block * _BLOCK_ELEMENTS : (block + 1) * _BLOCK_ELEMENTS]
        generator = np.random.Generator(np.random.SFC64([seed, key, block]))
        if part.dtype == np.uint8:  # two nibbles, the bits of a float8 other than NaN, or the 8-bit code of a scale
            part[:] = generator.integers(0, 256, part.size, np.uint8) & _NO_NAN
        elif part.dtype == np.int8:
            part[:] = generator.integers(-8, 8, part.size, np.int8)
        else:
            part[:] = generator.standard_normal(part.size, dtype=np.float32) * _SCALE

    # list() raises the exception of any block.
    list(pool.map(fill, range(math.ceil(flat.size / _BLOCK_ELEMENTS))))
    return values


def _constant(name: str, spec: WeightSpec) -> np.ndarray | float | None:
    """Returns the values of a weight that is not random; None for random weights."""
    if name.endswith("norm.weight"):
        return 1
    _, found, leaf = name.rpartition(".weight.")
    if not found:
        return None
    if leaf == "order":
        return np.arange(spec.shape[-1])
    if leaf == "codebook":
        return np.arange(-8, 8)
    step = _SCALE / _UNIFORM_DEVIATION
    if leaf == "scale_codes":
        return np.arange(1, 257) / 128
    values: Mapping[str, float] = {
        "zeros": 8 if spec.dtype == np.uint8 else 0,
        "scale_blocks": step,
        "scale_offset": 0,
    }
    if leaf == "scales" and spec.dtype != np.uint8:
        return step
    return values.get(leaf)
