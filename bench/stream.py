"""What the machine's memory gives: bytes a second read by all cores, the limit of a decode step."""

from __future__ import annotations

import os
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np

_BYTES = 1 << 29
_REPEATS = 5


def stream_bytes_a_second() -> float:
    """The best of several sums over arrays far larger than the caches, one a core."""
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
