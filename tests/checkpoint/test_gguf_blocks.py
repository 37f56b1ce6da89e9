"""Each kind of GGUF blocks in memory, against the `gguf` package, on random blocks and on extreme ones."""

from __future__ import annotations

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.checkpoint.gguf.file import GgufFile, RowTransform
from ryzjax.checkpoint.quantized.gguf import GgufMatrix
from ryzjax.checkpoint.quantized.gguf_blocks import BLOCK_KINDS
from ryzjax.checkpoint.quantized.quantized_weight import QuantizedLeaf
from ryzjax.errors import CheckpointError
from ryzjax.qarray import QArray, dequantize
from tests.checkpoint.gguf_files import SCALES, add_config, finish, random_blocks
from tests.models.test_families import ENTRIES

gguf = pytest.importorskip("gguf")

COLUMNS = 512
EXACT = ("Q4_0", "Q5_0", "Q8_0", "IQ4_NL")
"""Kinds whose scales are float16 in the file, without offsets."""


def write_tensor(path: Path, kind: str, data: np.ndarray) -> GgufFile:
    """Writes a file whose tensor "m" has the bytes `data` [rows, bytes of a row]."""
    writer = gguf.GGUFWriter(path, "llama")
    add_config(writer, "Llama", ENTRIES["llama"]["config"])
    writer.add_tensor("m", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    finish(writer)
    return GgufFile(path)


def qarray_of(matrix: GgufMatrix) -> QArray:
    """Reads all leaves, as the loader does."""
    leaves = {}
    for name, (shape, dtype) in matrix.format.leaf_shapes(matrix.shape).items():
        out = np.empty(shape, dtype)
        QuantizedLeaf((matrix,), name).read({}, tuple(slice(0, size) for size in shape), out)
        leaves[name] = jnp.asarray(out)
    return QArray(format=matrix.format, **leaves)


def extreme_blocks(kind: str) -> np.ndarray:
    """Blocks of all zero bits and of all one bits, beside scales and offsets of 0, tiny, large and of either sign.

    Offsets as large as the scales are small make zero points that float16 cannot hold.
    """
    qtype = gguf.GGMLQuantizationType[kind]
    block, size = gguf.GGML_QUANT_SIZES[qtype]
    numbers = np.array([0, 2**-24, -(2**-24), 3e-6, -6.2e-5, 0.01, -0.3, 7.0, 500.0], np.float16)
    at = [at for at, _ in SCALES[kind]]
    rng = np.random.default_rng(1)
    rows = []
    for scale in numbers:
        for offset in numbers if len(at) == 2 else numbers[:1]:
            fills = [np.full(size, fill, np.uint8) for fill in (0, 0xFF)] + [rng.integers(0, 256, size, dtype=np.uint8)]
            for data in fills:
                for place, number in zip(at, (scale, offset), strict=False):
                    data[place : place + 2] = number.reshape(1).view(np.uint8)
                rows.append(data)
    per_row = COLUMNS // block
    rows += rows[: -len(rows) % per_row]
    return np.concatenate(rows).reshape(-1, per_row * size)


@pytest.mark.parametrize("blocks", ["random", "extreme"])
@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_values_are_those_of_the_reference_up_to_the_rounding_of_scales(kind: str, blocks: str, tmp_path: Path):
    data = random_blocks((96, COLUMNS), kind) if blocks == "random" else extreme_blocks(kind)
    matrix = GgufMatrix(write_tensor(tmp_path / "m.gguf", kind, data), "m", (len(data), COLUMNS))
    want = gguf.quants.dequantize(data, gguf.GGMLQuantizationType[kind]).astype(np.float64)
    np.testing.assert_array_equal(matrix.dequantized(slice(None)), want)
    weight = qarray_of(matrix)
    got = np.asarray(dequantize(weight), np.float64)
    if kind in EXACT:
        np.testing.assert_array_equal(got, want)
        return
    # The bound that `gguf_blocks` states, and float32's own rounding. A group's offset is its value at q = 0.
    group = matrix.format.group
    assert group is not None
    size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]][1]
    scale, offset = BLOCK_KINDS[kind].scales(data.reshape(-1, size))
    scale = np.repeat(scale.astype(np.float64).reshape(len(data), -1), group, axis=1)
    offset = 0 if offset is None else np.repeat(offset.astype(np.float64).reshape(len(data), -1), group, axis=1)
    rounding = 2**-11 * (np.abs(want - offset) + np.abs(offset)) + 2**-25 * np.abs(scale)
    flat = np.abs(offset) > 65000 * np.abs(scale)
    bound = np.where(flat, 2**-10 * np.abs(offset), rounding) * (1 + 2**-8)
    assert (np.abs(got - want) <= bound).all()
    if blocks == "extreme" and weight.zeros is not None:
        assert flat.any()
    assert weight.zeros is None or np.isfinite(np.asarray(weight.zeros)).all()


@pytest.mark.parametrize("kind", BLOCK_KINDS)
def test_parts_of_a_matrix_and_interleaved_rows(kind: str, tmp_path: Path):
    data = random_blocks((64, COLUMNS), kind)
    file = write_tensor(tmp_path / "m.gguf", kind, data)
    file.transforms = {"m": RowTransform(interleaved_head_dim=16)}
    matrix = GgufMatrix(file, "m", (64, COLUMNS))
    order = np.arange(64).reshape(4, 8, 2).swapaxes(1, 2).reshape(-1)
    plain = GgufMatrix(write_tensor(tmp_path / "ordered.gguf", kind, data[order]), "m", (64, COLUMNS))
    for rows, columns in ((slice(None), slice(None)), (slice(5, 43), slice(64, 192)), (slice(7, 40, 3), slice(0, 32))):
        want = plain.integers(slice(None), slice(None))[rows, columns]
        np.testing.assert_array_equal(matrix.integers(rows, columns), want)
        packed = super(GgufMatrix, plain).values(rows, columns)  # the integers, packed by `pack_nibbles`
        np.testing.assert_array_equal(matrix.values(rows, columns), packed)
    for leaf in ("scales", "zeros") if matrix.format.has_zeros else ("scales",):
        np.testing.assert_array_equal(matrix.leaf(leaf), plain.leaf(leaf))
    np.testing.assert_array_equal(matrix.dequantized(slice(3, 9)), plain.dequantized(slice(3, 9)))


@pytest.mark.parametrize("number", [np.nan, np.inf, 60000.0])
def test_scales_that_are_not_finite_in_float16_are_refused(number: float, tmp_path: Path):
    data = random_blocks((4, COLUMNS), "Q4_K").reshape(4, 2, -1)
    data[2, 1, :2] = np.array([number], np.float16).view(np.uint8)
    matrix = GgufMatrix(write_tensor(tmp_path / "m.gguf", "Q4_K", data.reshape(4, -1)), "m", (4, COLUMNS))
    with pytest.raises(CheckpointError, match=r"m.gguf: scales of 'm' are not finite; the file is damaged"):
        qarray_of(matrix)
