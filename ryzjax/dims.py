"""The dimension glossary of array annotations and einsum strings.

T  tokens of a step, flat over its rows       R  rows of a step (one a sequence)
P  pages of a row in the page table           S  rows that sample a token
E  hidden (embedding) dimension               F  inner dimension of the MLP
N  query heads        H  key/value heads      G  query heads a key/value head (N = H * G)
D  head dimension     V  vocabulary           B  tokens of a block of pages
L  layers             K  in features of a linear (its out features are N there)
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Float32Array", "Int32Array"]

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
