"""read_gguf_header, against the reader of the `gguf` package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ryzjax.errors import CheckpointError
from ryzjax.gguf_header import read_gguf_header

gguf = pytest.importorskip("gguf")


def write(path: Path, alignment: int | None = None) -> Path:
    """Writes a file with metadata of every type, and two tensors."""
    writer = gguf.GGUFWriter(path, "llama")
    if alignment is not None:
        writer.add_custom_alignment(alignment)
    for name, value in {
        "uint8": 255,
        "int8": -128,
        "uint16": 65535,
        "int16": -32768,
        "uint32": 2**32 - 1,
        "int32": -(2**31),
        "float32": 0.1,
        "uint64": 2**64 - 1,
        "int64": -(2**63),
        "float64": 0.1,
        "bool": True,
        "string": "naïve 日本",
    }.items():
        getattr(writer, f"add_{name}")(f"a.{name}", value)
    writer.add_array("a.strings", ["one", "", "三"])
    writer.add_array("a.integers", [3, -1, 2])
    writer.add_array("a.floats", [0.5, -1.25])
    writer.add_array("a.bools", [True, False])
    writer.add_tensor("half", np.arange(6, dtype=np.float16).reshape(2, 3))
    blocks = gguf.quants.quantize(np.ones((4, 64), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("blocks", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alignment", [None, 256])
def test_it_reads_what_the_package_reads(alignment: int | None, tmp_path: Path):
    path = write(tmp_path / "a.gguf", alignment)
    header, reader = read_gguf_header(path), gguf.GGUFReader(path)
    expected = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert header.metadata == expected and len(expected) > 16
    for key, value in expected.items():
        assert type(header.metadata[key]) is type(value), key
    assert [(t.name, t.type, t.shape, t.begin) for t in header.tensors] == [
        (t.name, int(t.tensor_type), tuple(reversed(t.shape.tolist())), t.data_offset) for t in reader.tensors
    ]


def test_a_file_cut_at_any_byte_of_its_header_is_refused(tmp_path: Path):
    whole = write(tmp_path / "a.gguf").read_bytes()
    end = read_gguf_header(tmp_path / "a.gguf").tensors[0].begin - 32  # the header ends within the padding before it
    cut = tmp_path / "cut.gguf"
    for size in range(0, end, 7):
        cut.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"cut.gguf: truncated, damaged or not a GGUF file"):
            read_gguf_header(cut)


@pytest.mark.parametrize(
    ("at", "data", "message"),
    [
        (0, b"GGML", "does not start with GGUF"),
        (4, b"\0\0\0\3", "version 50331648, expected 2 or 3 in little-endian order"),
        (8, b"\xff" * 8, "truncated, damaged"),
        (16, b"\xff" * 8, "truncated, damaged"),
        (24, b"\xff" * 8, "bytes at byte 32"),
    ],
)
def test_a_damaged_header_is_refused(at: int, data: bytes, message: str, tmp_path: Path):
    whole = bytearray(write(tmp_path / "a.gguf").read_bytes())
    whole[at : at + len(data)] = data
    (tmp_path / "a.gguf").write_bytes(whole)
    with pytest.raises(CheckpointError, match=message):
        read_gguf_header(tmp_path / "a.gguf")


def test_a_missing_file_is_refused(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_gguf_header(tmp_path / "none.gguf")
