"""A fingerprint of a frozen base model.

A run's checkpoints store it, because an adapter must be resumed over the same weights it was trained on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import jax
import numpy as np

from ryzjax.sharding.host_memory import is_on_host

__all__ = ["base_fingerprint"]

_SAMPLES = 64


def base_fingerprint(weights: Mapping[str, jax.Array]) -> str:
    """Returns 16 hexadecimal digits that depend on names, shapes, dtypes and up to 64 values of each weight.

    Weights are read as they are in memory, so another quantization gives another fingerprint. The sharding and the
    memory that holds them do not matter.

    Args:
      weights: Weight name -> array, of any sharding that this process can address.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name]
        step = max(weight.size // _SAMPLES, 1)
        # An odd stride visits all columns of a matrix, not one of them over and over.
        places = (np.arange(min(weight.size, _SAMPLES), dtype=np.int64) * (step | 1)) % weight.size
        index = tuple(np.unravel_index(places, weight.shape))
        there = np.asarray(weight) if is_on_host(weight) else weight
        values = np.asarray(there[index] if weight.ndim else there)
        digest.update(f"{name} {weight.dtype} {list(weight.shape)} ".encode())
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()[:16]
