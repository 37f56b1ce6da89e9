"""Which product is faster on which instruction set: XLA's or the kernels', and with which activations.

`plain_rows` is measured by `bench/crossover.py`, and `int8_activations` by `ryzjax info --measure`.

XLA sums a row in another order than the kernels do. The crossover is therefore above the engine's default step size
(`max_batch_tokens`), so that a row's result does not depend on its neighbors in a default configuration, and it is at
a size where whole prompts gain too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["CROSSOVERS", "Crossover"]


@dataclass(frozen=True, kw_only=True)
class Crossover:
    """The crossovers of one instruction set.

    Attributes:
      int8_activations: whether low-bit weights are multiplied faster with activations quantized to int8 than with
        bfloat16 ones.
      plain_rows: the number of rows from which XLA multiplies plain bfloat16 weights; None for never. XLA never
        multiplies quantized weights here, because it dequantizes them in a separate pass.
      measured: hardware, versions and figures of the measurement.
    """

    int8_activations: bool
    plain_rows: int | None
    measured: str


CROSSOVERS: Mapping[str, Crossover] = {
    "avx512": Crossover(
        int8_activations=False,
        plain_rows=1024,
        measured="2 cores of AMD Zen 5 (bfloat16 products), jax 0.10.2, 2026-11-25. XLA's time over ours, bfloat16, at "
        "512, 1024, 2048 and 4096 rows: 896 -> 9728 0.99, 0.97, 0.95, 0.96; 4864 -> 896 0.88, 0.89, 0.78, 0.80; "
        "896 -> 1152 1.14, 0.99, 1.12, 0.92. int8 1.01 or more, int4 1.19 or more at each. "
        "Whole prompts of 1024 and 2048 tokens through a 0.5B model: 0.95, 0.92",
    ),
    "avx512-vnni": Crossover(
        int8_activations=True,
        plain_rows=None,
        measured="`ryzjax info --measure` on 2 cores of an AMD EPYC (Zen 4), 2026-11-28. "
        "Speed of int8 over bfloat16 activations, int4 weights, at 1, 8 and 512 rows: 2.75, 3.94, 2.94. "
        "plain_rows was not measured",
    ),
    "avx2-vnni": Crossover(
        int8_activations=True,
        plain_rows=None,
        measured="not measured: our machine does not offer AVX-VNNI",
    ),
    "avx512-bw": Crossover(
        int8_activations=True,
        plain_rows=None,
        measured="`ryzjax info --measure` on 2 cores of an AMD EPYC (Zen 4), 2026-11-28. "
        "Speed of int8 over bfloat16 activations, int4 weights, at 1, 8 and 512 rows: 2.40, 3.60, 2.67. "
        "plain_rows was not measured",
    ),
    "avx2": Crossover(
        int8_activations=True,
        plain_rows=None,
        measured="`ryzjax info --measure` on 2 cores of an AMD EPYC (Zen 4), 2026-11-28. "
        "Speed of int8 over bfloat16 activations, int4 weights, at 1, 8 and 512 rows: 2.50, 2.81, 1.86. "
        "plain_rows was not measured: the libraries that XLA calls use AVX-512 if the machine has it, and ours has it",
    ),
    "dotprod": Crossover(int8_activations=True, plain_rows=None, measured="not measured: no Arm machine was available"),
    "portable": Crossover(
        int8_activations=False, plain_rows=None, measured="not measured: no Arm machine was available"
    ),
}
