"""Prints a digest of what the native quantizer gives, for the instruction set of this process (RYZJAX_NATIVE_ISA).

python tests/native/quantize_digest.py
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from ryzjax.native.library import isa, native_refusal
from ryzjax.quant.quantized_rows import QuantizedRows
from tests.quantize_cases import FORMATS, SIZES, random_matrix


def digest() -> str:
    """Quantizes matrices of every format, dtype and size. Returns the digest of all leaves."""
    found = hashlib.sha256()
    for shape, format in FORMATS.values():
        for dtype in ("bfloat16", "float16", "float32"):
            for size in SIZES.values() if dtype != "float16" else (0.02,):
                w = random_matrix(shape, dtype, size)
                quantized = QuantizedRows(shape, format)
                assert quantized.fill(slice(0, shape[0]), w) == 0
                for leaf in quantized.leaves().values():
                    found.update(leaf.tobytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(isa(), digest() if isa() else native_refusal())
