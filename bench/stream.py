"""Measures how fast all cores together read memory, which limits the speed of a decode step.

    python bench/stream.py

It prints GB/s.
"""

from __future__ import annotations

from ryzjax.bench.machine import stream_bytes_a_second

BYTES = 1 << 29
"""The size of the arrays that are read."""

if __name__ == "__main__":
    print(f"{stream_bytes_a_second(BYTES) / 1e9:.1f} GB/s")
