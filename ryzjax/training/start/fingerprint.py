"""A short name for a frozen base model: an adapter's checkpoint goes on over the very weights it was trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import jax
import numpy as np

from ryzjax.sharding.host_memory import is_on_host

__all__ = ["base_fingerprint"]

_SAMPLES = 64


def base_fingerprint(weights: Mapping[str, jax.Array]) -> str:
    """16 hexadecimal digits of names, shapes, dtypes and up to 64 values of each weight, spread over it.

    Weights as they are in memory: another quantization is another model. Where they lie does not matter.

    Args:
      weights: our weight name -> array, of any sharding that this process can address.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name]
        step = max(weight.size // _SAMPLES, 1)
        # A prime neighbour of the stride visits all columns of a matrix, and not one over and over.
        places = (np.arange(min(weight.size, _SAMPLES), dtype=np.int64) * (step | 1)) % weight.size
        index = tuple(np.unravel_index(places, weight.shape))
        there = np.asarray(weight) if is_on_host(weight) else weight
        values = np.asarray(there[index] if weight.ndim else there)
        digest.update(f"{name} {weight.dtype} {list(weight.shape)} ".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]
