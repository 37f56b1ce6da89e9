"""The dtypes in which checkpoints store scales."""

from __future__ import annotations

from typing import Literal

from ryzjax.checkpoint.tensor_file import TensorEntry

__all__ = ["SCALE_DTYPES", "scale_dtype"]

SCALE_DTYPES = ("F16", "BF16", "F32")


def scale_dtype(entry: TensorEntry) -> Literal["float32", "float16", "bfloat16"]:
    """Returns `QFormat.scale_dtype` for the stored scales of a tensor."""
    dtypes: dict[str, Literal["float32", "float16", "bfloat16"]]
    dtypes = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
    return dtypes[entry.dtype_name]
