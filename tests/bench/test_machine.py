"""The measurement of `ryzjax info --measure`, with tiny sizes. No time is asserted."""

from __future__ import annotations

import math

import pytest
from rich.console import Console

from ryzjax.bench import machine
from ryzjax.bench.machine import measure_products, product_table, stream_bytes_a_second, working_set_bytes
from ryzjax.cli.main import main
from ryzjax.native.library import ISAS, describe_kernels, isa, native_refusal

SMALL = {"n": 64, "k": 128, "rows": (1, 8, 80), "num_bytes": 40_000, "cell_seconds": 0.0}
CASES = {("bf16", "bf16"), ("int8", "bf16"), ("int8", "int8"), ("int4", "bf16"), ("int4", "int8")}


def shown(products: list[machine.Product], width: int = 100) -> str:
    console = Console(width=width)
    with console.capture() as capture:
        console.print(product_table(products))
    return capture.get()


def test_each_cell_has_a_figure_or_a_reason():
    products = measure_products(**SMALL)
    assert {(one.weights, one.activations, one.rows) for one in products} == {
        (*case, rows) for case in CASES for rows in SMALL["rows"]
    }
    for one in products:
        assert one.flops == 2 * one.rows * 64 * 128
        if one.activations == "int8" and native_refusal() is not None:
            assert one.refusal == native_refusal() and one.seconds is None and one.implementation is None
        else:
            assert one.refusal is None and one.seconds is not None
            assert 0 < one.seconds < math.inf
            assert one.implementation == (f"native ({isa()})" if native_refusal() is None else "xla")
    sizes = {one.weights: one.weight_bytes for one in products}
    assert sizes == {"bf16": 64 * 128 * 2, "int8": 64 * 128 + 64 * 2 * 2, "int4": 64 * 128 // 2 + 64 * 2 * 2}


def test_copies_have_their_own_memory():
    for format in machine._FORMATS.values():
        copies = machine._copies(machine.np.random.default_rng(0), format, 64, 128, 60_000)
        arrays = [getattr(copy, "values", copy) for copy in copies]
        assert sum(copy.nbytes for copy in copies) >= 60_000
        assert len({array.unsafe_buffer_pointer() for array in arrays}) == len(copies) >= 2


def test_the_table(monkeypatch: pytest.MonkeyPatch):
    products = [
        machine.Product(
            weights="int4",
            activations=activations,
            rows=rows,
            implementation="native (avx2)",
            weight_bytes=4_000_000,
            flops=2_000_000_000,
            seconds=seconds,
        )
        for activations, rows, seconds in (
            ("bf16", 1, 0.002),
            ("bf16", 512, 0.1),
            ("int8", 1, 0.001),
            ("int8", 512, 0.02),
        )
    ]
    text = shown(products)
    assert "2.00, 2.0" in text and "1.00, 4.0" in text, "milliseconds and GB/s"
    assert "100.00, 20.0" in text and "20.00, 100.0" in text, "milliseconds and GFLOP/s"
    sentence = "int4 weights: speed of int8 over bf16 activations 2.00x at 1, 5.00x at 512 rows"
    assert sentence in " ".join(text.split())


def test_a_refusal_is_in_the_table(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "native_quantized_refusal", lambda *_: "no kernels today")
    products = measure_products(**{**SMALL, "rows": (1,)})
    assert {one.refusal for one in products} == {None, "no kernels today"}
    text = shown(products)
    assert text.count("refused") == 2 and text.count("int8 activations: no kernels today") == 1
    assert "speed of int8" not in text


def test_memory():
    assert 0 < stream_bytes_a_second(1 << 16, repeats=1) < math.inf
    assert 2**27 <= working_set_bytes() <= 2**30


def test_every_instruction_set_is_described():
    if isa() is None:
        assert describe_kernels() == f"do not run: {native_refusal()}"
    else:
        assert describe_kernels().startswith(f"{isa()}: {ISAS[str(isa())]}; ")


def test_info_measures(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    measure = machine.measure_products
    monkeypatch.setattr(machine, "working_set_bytes", lambda: 40_000)
    monkeypatch.setattr(machine, "measure_products", lambda num_bytes: measure(**{**SMALL, "num_bytes": num_bytes}))
    assert main(["info", "--measure"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "native kernels" in words and "--activations auto" in words
    assert "GB/s" in words and "y = x W^T" in words and "--activations auto takes" in words
