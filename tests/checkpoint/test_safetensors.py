"""SafetensorsFile: the same values as the library for valid files, and a clear error for each damaged file."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from ryzjax.checkpoint.safetensors import SafetensorsFile
from ryzjax.errors import CheckpointError

ALL = (slice(None), slice(None))


def write(path: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + data)
    return path


def entry(begin: int, end: int, shape: list[int] | None = None, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


@pytest.mark.parametrize("dtype", [np.float32, np.float16, np.float64, ml_dtypes.bfloat16])
@pytest.mark.parametrize("target", [np.float32, ml_dtypes.bfloat16])
def test_reads_what_the_library_wrote(tmp_path: Path, dtype: type, target: type):
    rng = np.random.default_rng(0)
    tensors = {
        "a": rng.standard_normal((33, 7)).astype(dtype),
        "s": np.asarray(1.5, dtype),
        "empty": np.zeros((0, 4), dtype),
    }
    save_file(tensors, tmp_path / "m.safetensors", metadata={"format": "pt"})
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        assert set(file.entries) == set(tensors)
        out = np.empty((33, 7), target)
        file.read("a", ALL, out)
        np.testing.assert_array_equal(out, tensors["a"].astype(target))
        part = np.empty((5, 3), target)
        file.read("a", (slice(10, 15), slice(2, 5)), part)
        np.testing.assert_array_equal(part, tensors["a"][10:15, 2:5].astype(target))
        scalar = np.empty((), target)
        file.read("s", (), scalar)
        assert scalar == 1.5
        file.read("empty", ALL, np.empty((0, 4), target))


def test_large_tensor_is_read_in_chunks(tmp_path: Path):
    big = np.arange(9 * 2**20, dtype=np.float32).reshape(-1, 1024)
    save_file({"pad": np.ones(3, np.float32), "big": big}, tmp_path / "m.safetensors")
    with SafetensorsFile(tmp_path / "m.safetensors") as file:
        out = np.empty_like(big)
        file.read("big", ALL, out)
    np.testing.assert_array_equal(out, big)


@pytest.mark.parametrize(
    ("header", "data", "expected"),
    [
        (b"", b"", "not valid JSON"),
        (b"{nope", b"", "not valid JSON"),
        (b"[" * 50_000, b"", "not valid JSON"),
        (b"\xff\xfe{}", b"", "not valid JSON"),
        ([], b"", "expected an object"),
        ({"a": 3}, b"", "'a'.*expected an object"),
        ({"a": entry(0, 8, dtype="F4")}, bytes(8), "dtype 'F4'"),
        ({"a": entry(0, 8, [-2])}, bytes(8), "shape"),
        ({"a": entry(0, 8, [3])}, bytes(8), "needs 12"),
        ({"a": entry(0, 8, [2**62, 2**62])}, bytes(8), "needs"),
        ({"a": {**entry(0, 8), "data_offsets": [8, 0]}}, bytes(8), "data_offsets"),
        ({"a": {**entry(0, 8), "data_offsets": [0]}}, bytes(8), "data_offsets"),
        ({"a": entry(0, 8)}, bytes(4), "truncated"),
        ({"a": entry(0, 8)}, bytes(12), "longer than its header"),
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "'b'.*overlaps"),
        ({"a": entry(0, 8), "b": entry(12, 16)}, bytes(16), "'b'.*gap"),
        (b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "a": 0}', bytes(4), "twice"),
    ],
)
def test_damaged_files(tmp_path: Path, header: object, data: bytes, expected: str):
    path = write(tmp_path / "m.safetensors", header, data)
    with pytest.raises(CheckpointError, match=expected) as error:
        SafetensorsFile(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("content", [b"", b"\x01", b"\x00" * 7, (2**63).to_bytes(8, "little") + b"{}"])
def test_truncated_header(tmp_path: Path, content: bytes):
    path = tmp_path / "m.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated or not safetensors"):
        SafetensorsFile(path)


def test_missing_file(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot be read"):
        SafetensorsFile(tmp_path / "nothing.safetensors")


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(position=st.integers(0, 200), value=st.integers(0, 255), cut=st.integers(0, 40))
def test_any_damage_is_an_error_or_harmless(tmp_path: Path, position: int, value: int, cut: int):
    path = tmp_path / "m.safetensors"
    save_file({"a": np.ones((3, 2), np.float32), "b": np.zeros(4, np.float16)}, path)
    content = bytearray(path.read_bytes())
    content[position % len(content)] = value
    path.write_bytes(bytes(content[: len(content) - cut]))
    try:
        with SafetensorsFile(path) as file:
            for item in file.entries.values():
                file.read(item.name, (slice(None),) * len(item.shape), np.empty(item.shape, np.float32))
    except CheckpointError:
        pass
