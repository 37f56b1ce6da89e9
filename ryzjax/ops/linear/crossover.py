"""From how many rows on XLA's own products beat the native kernels: measured by `bench/crossover.py`, kept here.

A row's sums have another order there than below, so the table begins where a step is larger than the engine's default
(`max_batch_tokens`), and where whole prompts gain too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CROSSOVERS", "Crossover"]


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """One instruction set's line.

    Attributes:
      plain_rows: from these on plain bfloat16 weights go to XLA; None for never. Quantized weights never do: XLA
        dequantizes in a pass of its own.
      measured: hardware, versions and figures.
    """

    plain_rows: int | None
    measured: str


CROSSOVERS: Mapping[str, Crossover] = {
    "avx512": Crossover(
        plain_rows=1024,
        measured="2 cores of AMD Zen 5 (bfloat16 products), jax 0.10.2, 2026-11-25. XLA's time to ours, bfloat16, at "
        "512, 1024, 2048 and 4096 rows: 896 -> 9728 0.99, 0.97, 0.95, 0.96; 4864 -> 896 0.88, 0.89, 0.78, 0.80; "
        "896 -> 1152 1.14, 0.99, 1.12, 0.92. int8 1.01 or more, int4 1.19 or more at each. "
        "Whole prompts of 1024 and 2048 tokens through a 0.5B model: 0.95, 0.92",
    ),
    "avx2": Crossover(
        plain_rows=None,
        measured="not measured: the libraries that XLA calls use AVX-512 where the machine has it, and ours has",
    ),
    "portable": Crossover(plain_rows=None, measured="not measured: no Arm machine at hand"),
}
