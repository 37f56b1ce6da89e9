"""Quantized checkpoints against the packages that write them: compressed-tensors and bitsandbytes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from ryzjax.qarray import dequantize
from tests.checkpoint.quantized_files import FORMATS, Format, Packed, write
from tests.checkpoint.test_quantized import opened, qarray

pytestmark = pytest.mark.parity


def check(format: Format, folder: Path, *, atol: float = 0.0) -> None:
    values = write(folder, format)
    model, weights = opened(folder)
    assert set(model.quantization) == set(values)
    for name, wanted in values.items():
        np.testing.assert_allclose(dequantize(qarray(model, weights, name)), wanted, rtol=0, atol=atol, err_msg=name)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize(("bits", "group"), [(4, 32), (8, 32), (4, None), (8, None)])
def test_pack_quantized(bits: int, group: int | None, symmetric: bool, tmp_path: Path):
    torch = pytest.importorskip("torch")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    strategy = "channel" if group is None else "group"
    args = QuantizationArgs(num_bits=bits, type="int", symmetric=symmetric, strategy=strategy, group_size=group)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)

    def pack(rng: np.random.Generator, n: int, k: int) -> Packed:
        half = 2 ** (bits - 1)
        groups = 1 if group is None else k // group
        state = {
            "weight": torch.from_numpy(rng.standard_normal((n, k)).astype(np.float32)),
            "weight_scale": torch.from_numpy(rng.uniform(0.05, 0.3, (n, groups)).astype(np.float32)),
            "weight_zero_point": torch.from_numpy(rng.integers(-half, half, (n, groups)).astype(np.int8)),
        }
        if symmetric:
            state["weight_zero_point"].zero_()
        compressor = compressors.PackedQuantizationCompressor
        compressed = compressor.compress(state, scheme)
        values = compressor.decompress(compressed, scheme)["weight"].numpy()
        return Packed(tensors={name: tensor.numpy() for name, tensor in compressed.items()}, values=values)

    check(dataclasses.replace(FORMATS["packed_int4"], pack=pack), tmp_path)


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("strategy", ["tensor", "channel"])
def test_int_and_float_quantized(kind: str, strategy: str, tmp_path: Path):
    torch = pytest.importorskip("torch")
    compressors = pytest.importorskip("compressed_tensors.compressors")
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    args = QuantizationArgs(num_bits=8, type=kind, symmetric=True, strategy=strategy)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = compressors.IntQuantizationCompressor if kind == "int" else compressors.FloatQuantizationCompressor

    def pack(rng: np.random.Generator, n: int, k: int) -> Packed:
        shape = (1,) if strategy == "tensor" else (n, 1)
        scale = rng.uniform(0.01, 0.03, shape).astype(np.float32)
        state = {
            "weight": torch.from_numpy(rng.standard_normal((n, k)).astype(np.float32)),
            "weight_scale": torch.from_numpy(scale),
        }
        compressed = compressor.compress(state, scheme)
        values = compressor.decompress(compressed, scheme)["weight"].numpy()
        tensors = {}
        for name, tensor in compressed.items():
            is_float8 = tensor.dtype == torch.float8_e4m3fn
            tensors[name] = _float8(tensor.view(torch.uint8).numpy()) if is_float8 else tensor.numpy()
        return Packed(tensors=tensors, values=values)

    check(dataclasses.replace(FORMATS["w8a8" if kind == "int" else "float8_rows"], pack=pack), tmp_path)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes(kind: str, nested: bool, tmp_path: Path):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")

    def pack(rng: np.random.Generator, n: int, k: int) -> Packed:
        weight = torch.from_numpy(rng.standard_normal((n, k)).astype(np.float32))
        quantized, state = functional.quantize_4bit(weight, blocksize=64, compress_statistics=nested, quant_type=kind)
        values = functional.dequantize_4bit(quantized, state).numpy()
        tensors = {f"weight.{name}": tensor.numpy() for name, tensor in state.as_dict(packed=True).items()}

        return Packed(tensors={"weight": quantized.numpy(), **tensors}, values=values)

    config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind}
    check(Format(config=config, pack=pack), tmp_path)


def test_bitsandbytes_blocks_that_cross_rows(tmp_path: Path):
    """Layers whose blocks of 256 span rows of 64 and 128 are dequantized to the same values."""
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")

    def pack(rng: np.random.Generator, n: int, k: int) -> Packed:
        weight = torch.from_numpy(rng.standard_normal((n, k)).astype(np.float32))
        quantized, state = functional.quantize_4bit(weight, blocksize=256, compress_statistics=True, quant_type="nf4")
        tensors = {f"weight.{name}": tensor.numpy() for name, tensor in state.as_dict(packed=True).items()}
        # On a CPU dequantize_4bit is wrong for blocks longer than a row, so this follows the definition instead.
        absmax = tensors["weight.nested_quant_map"][tensors["weight.absmax"]] * tensors["weight.nested_absmax"][0]
        bytes_ = quantized.numpy()[:, 0]
        codes = tensors["weight.quant_map"][np.stack([bytes_ >> 4, bytes_ & 15], axis=1)].reshape(-1, 256)
        values = (codes * (absmax + np.float32(state.offset))[:, None]).reshape(n, k)
        assert np.abs(values - weight.numpy()).max() < 0.8
        return Packed(tensors={"weight": quantized.numpy(), **tensors}, values=values)

    values = write(tmp_path, Format(config={"quant_method": "bitsandbytes", "load_in_4bit": True}, pack=pack))
    model, weights = opened(tmp_path)
    assert not model.quantization
    for name, wanted in values.items():
        np.testing.assert_array_equal(weights[f"{name}.weight"], wanted, err_msg=name)


def test_bitsandbytes_int8(tmp_path: Path):
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")

    def pack(rng: np.random.Generator, n: int, k: int) -> Packed:
        weight = torch.from_numpy(rng.standard_normal((n, k)).astype(np.float16))
        quantized, stats, _ = functional.int8_vectorwise_quant(weight)
        values = functional.int8_vectorwise_dequant(quantized, stats).numpy()
        tensors = {"weight": quantized.numpy(), "SCB": stats.numpy(), "weight_format": np.zeros((), np.uint8)}
        return Packed(tensors=tensors, values=values)

    config = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    # bitsandbytes multiplies by the row's scale and by 1/127 in two steps, so the last bit differs.
    check(Format(config=config, pack=pack), tmp_path, atol=5e-7)


def _float8(bits: np.ndarray) -> np.ndarray:
    import ml_dtypes

    return bits.view(ml_dtypes.float8_e4m3fn)
