"""Measures how fast all cores together read memory, which limits the speed of a decode step.

    python bench/stream.py

It prints GB/s.
"""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_BYTES = 1 << 29
_REPEATS = 5


def stream_bytes_a_second() -> float:
    """Returns the bytes per second at which all cores sum arrays larger than the caches, the best of several runs."""
    cores = os.cpu_count() or 1
    arrays = [np.ones(_BYTES // 8 // cores, np.int64) for _ in range(cores)]
    best = 0.0
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(_REPEATS):
            started = time.perf_counter()
            list(pool.map(np.sum, arrays))
            best = max(best, _BYTES / (time.perf_counter() - started))
    return best


if __name__ == "__main__":
    print(f"{stream_bytes_a_second() / 1e9:.1f} GB/s")
