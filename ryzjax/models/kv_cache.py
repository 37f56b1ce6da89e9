"""The KV cache of a model: its number format, and the arrays that hold it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.batch import KVCache
from ryzjax.dims import Float32Array
from ryzjax.errors import ConfigError
from ryzjax.models.config import ModelConfig
from ryzjax.sharding import Placement

__all__ = ["KVDtype", "KVFormat", "KVScales", "empty_kv_cache", "kv_cache_shapes", "kv_page_bytes"]

KVDtype = Literal["float32", "bfloat16", "int8", "fp8_e4m3"]

_STORED: Mapping[str, jnp.dtype] = {
    "float32": jnp.dtype(jnp.float32),
    "bfloat16": jnp.dtype(jnp.uint16),
    "int8": jnp.dtype(jnp.int8),
    "fp8_e4m3": jnp.dtype(jnp.uint8),
}
"""The dtype of the arrays. bfloat16 and float8 are stored as their bits, because XLA for CPU would otherwise convert
the whole cache to float32 before it reads a page."""


class KVScales(NamedTuple):
    """The calibrated scales of an fp8 cache. A number is its float8 value times the scale of its layer and head.

    Attributes:
      k, v: The scales of keys and values, float32 [L, H], all positive.
    """

    k: Float32Array
    v: Float32Array


@dataclass(frozen=True, kw_only=True, eq=False)
class KVFormat:
    """The number format of keys and values.

    Attributes:
      dtype: The dtype of the numbers. int8 has a scale for each token and head. fp8_e4m3 needs calibrated scales.
      scales: The scales of fp8_e4m3; None for every other dtype.

    Raises:
      ConfigError: Scales are given without fp8_e4m3, or missing with it.
    """

    dtype: KVDtype
    scales: KVScales | None = None

    def __post_init__(self) -> None:
        if (self.dtype == "fp8_e4m3") != (self.scales is not None):
            which = "without" if self.scales is None else "with"
            raise ConfigError(
                f"a KV cache of {self.dtype} {which} calibrated scales; fp8_e4m3 needs them, and no other dtype "
                "uses them"
            )


def kv_cache_shapes(
    config: ModelConfig, placement: Placement, dtype: KVDtype, *, num_pages: int, page_size_tokens: int
) -> KVCache:
    """Returns a cache of `jax.ShapeDtypeStruct`s. KV heads are sharded; the other dimensions are not split."""
    tokens = (config.num_layers, num_pages, config.num_kv_heads, page_size_tokens)
    pages = jax.ShapeDtypeStruct((*tokens, config.head_dim), _STORED[dtype])
    scales = None
    if dtype == "int8":
        scales = jax.ShapeDtypeStruct(tokens, jnp.uint16)
    elif dtype == "fp8_e4m3":
        scales = jax.ShapeDtypeStruct((config.num_layers, config.num_kv_heads), jnp.float32)
    cache = KVCache._make([pages, pages, scales, scales])
    return jax.tree.map(
        lambda array, spec: array.update(sharding=jax.sharding.NamedSharding(placement.mesh, spec)),
        cache,
        placement.cache_specs(cache),
    )


def empty_kv_cache(
    config: ModelConfig, placement: Placement, format: KVFormat, *, num_pages: int, page_size_tokens: int
) -> KVCache:
    """Returns a cache of zeros on the mesh. An fp8 cache contains its scales.

    Raises:
      ConfigError: The scales have another shape than [L, H].
    """
    shapes = kv_cache_shapes(config, placement, format.dtype, num_pages=num_pages, page_size_tokens=page_size_tokens)
    cache: KVCache = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype, device=s.sharding), shapes)
    if format.scales is None:
        return cache
    assert shapes.k_scale is not None and shapes.v_scale is not None
    for name, scale in format.scales._asdict().items():
        if scale.shape != shapes.k_scale.shape:
            raise ConfigError(
                f"KV scales {name} have shape {list(scale.shape)}; expected {list(shapes.k_scale.shape)}, one for "
                "each layer and KV head; calibrate this model"
            )
    k_scale, v_scale = (np.ascontiguousarray(scale, np.float32) for scale in format.scales)
    return cache._replace(
        k_scale=jax.device_put(k_scale, shapes.k_scale.sharding),
        v_scale=jax.device_put(v_scale, shapes.v_scale.sharding),
    )


def kv_page_bytes(config: ModelConfig, placement: Placement, dtype: KVDtype, page_size_tokens: int) -> int:
    """Returns the bytes of one page on one device: keys, values and their scales, in all layers.

    The scales of an fp8 cache are not counted, because they do not grow with the number of pages.
    """
    cache = kv_cache_shapes(config, placement, dtype, num_pages=1, page_size_tokens=page_size_tokens)
    arrays = [array for array in jax.tree.leaves(cache) if array.ndim > 2]
    return sum(int(np.prod(a.sharding.shard_shape(a.shape))) * a.dtype.itemsize for a in arrays)
