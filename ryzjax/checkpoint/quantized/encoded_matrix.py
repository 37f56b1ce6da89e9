"""EncodedMatrix: a matrix that RyzJAX quantized, before it is packed for memory or for a file."""

from __future__ import annotations

from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from ryzjax.checkpoint.quantized.words import pack_words
from ryzjax.qarray import QArray, QFormat, pack_nibbles

__all__ = ["EncodedMatrix"]


@dataclass(frozen=True, kw_only=True)
class EncodedMatrix:
    """A quantized matrix [N, K] with unpacked integers. `qarray` packs it for memory, `tensors` for a file.

    Attributes:
      format: int4 or int8, with one scale for each row and group.
      q: int8 [N, K], or nibbles as uint8 [N, K].
      scales: [N, K / group], in the format's scale dtype.
      zeros: uint8 [N, K / group]; None if the format has no zeros.
    """

    format: QFormat
    q: np.ndarray
    scales: np.ndarray
    zeros: np.ndarray | None = None

    @property
    def bits(self) -> int:
        """The bits of a value, 4 or 8."""
        return 4 if self.format.kind == "int4" else 8

    def qarray(self) -> QArray:
        """Returns the matrix as a QArray on the default device."""
        values = pack_nibbles(self.q, self.format.pack) if self.format.pack else self.q
        scales = self.scales.view(np.uint16) if self.format.scale_dtype == "bfloat16" else self.scales
        zeros = None if self.zeros is None else jnp.asarray(self.zeros)
        return QArray(format=self.format, values=jnp.asarray(values), scales=jnp.asarray(scales), zeros=zeros)

    def dequantized(self) -> np.ndarray:
        """Returns the dequantized matrix, float32 [N, K]."""
        k = self.q.shape[1]
        group = self.format.group or k
        zero = np.float32(8 if self.bits == 4 else 0)
        if self.zeros is not None:
            zero = np.repeat(self.zeros, group, axis=1).astype(np.float32)
        return (self.q.astype(np.float32) - zero) * np.repeat(self.scales.astype(np.float32), group, axis=1)

    def with_rows_divided(self, by: np.ndarray) -> EncodedMatrix:
        """Divides each row by a factor. The scales change, and are rounded once more; q stays the same.

        Args:
          by: The factors, float32 [N].
        """
        scales = (self.scales.astype(np.float32) / by[:, None]).astype(self.scales.dtype)
        return replace(self, scales=scales)

    def tensors(self) -> dict[str, np.ndarray]:
        """Returns the tensors in the compressed-tensors format, by the end of their names."""
        if self.format.activations == "int8":
            return {"weight": self.q, "weight_scale": self.scales}
        q = self.q if self.bits == 4 else (self.q.view(np.uint8) ^ 0x80)
        stored = {
            "weight_packed": pack_words(q, self.bits, 1),
            "weight_scale": self.scales,
            "weight_shape": np.array(self.q.shape, np.int64),
        }
        if self.zeros is not None:
            stored["weight_zero_point"] = pack_words(self.zeros, self.bits, 0)
        return stored
