"""The letters of dimensions in array annotations and einsum strings.

T  tokens of a step, flat over its rows       R  rows: sequences when serving, packed rows when training
P  pages of a row in the page table           S  rows that sample a token
C  tokens of a packed row                     B  tokens of a block of pages
E  hidden (embedding) dimension               F  inner dimension of the MLP
N  query heads        H  key/value heads      G  query heads a key/value head (N = H * G)
D  head dimension     V  vocabulary           L  layers             X  experts

In the annotations of a linear layer, K are its in features, N its out features and M its rows. In the einsum strings of
attention, Q and K are the queries and the keys of a block.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["Float32Array", "Int32Array"]

Float32Array = npt.NDArray[np.float32]
Int32Array = npt.NDArray[np.int32]
