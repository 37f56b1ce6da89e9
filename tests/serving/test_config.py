"""EngineConfig: ranges, sizes, and the options of LLM that mirror it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_type_hints

import pytest

from ryzjax.errors import ConfigError
from ryzjax.serving.messages.config import EngineConfig, EngineOptions, parse_bytes


@pytest.mark.parametrize(
    ("text", "size"),
    [("0", 0), ("1048576", 2**20), ("2GiB", 2**31), ("2 gib", 2**31), ("1.5KiB", 1536), ("512 MB", 512 * 10**6)],
)
def test_parse_bytes(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2 parsecs", "1e9", "2GiB!", "nan"])
def test_sizes_that_are_not_understood(text: str) -> None:
    with pytest.raises(ConfigError, match="not understood; expected a number and a unit"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_sequences": 0}, "max_sequences=0 is out of range; expected 1 to 4096"),
        ({"max_batch_tokens": 0}, "max_batch_tokens=0"),
        ({"page_size_tokens": 0}, "page_size_tokens=0"),
        ({"max_queue": -1}, "max_queue=-1"),
        ({"seed": -1}, "seed=-1"),
        ({"max_context_tokens": 1}, "max_context_tokens=1 is too small"),
        ({"max_sequences": 64, "max_batch_tokens": 32}, "every running sequence must fit a step"),
        ({"memory_fraction": 0.0}, "memory_fraction=0.0"),
        ({"memory_fraction": float("nan")}, "memory_fraction=nan"),
        ({"kv_memory": "lots"}, "size 'lots'"),
        ({"kv_scale_unit": True}, "kv_scale_unit is set, but kv_dtype=auto has no calibrated scales"),
        ({"kv_scale_unit": True, "kv_dtype": "int8"}, "but kv_dtype=int8 has no calibrated scales"),
    ],
)
def test_values_out_of_range(options: EngineOptions, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(model="m", **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_sequences": "8"}, "max_sequences='8' is a str; expected int"),
        ({"max_sequences": True}, "max_sequences=True is a bool; expected int"),
        ({"max_sequences": 8.0}, "max_sequences=8.0 is a float"),
        ({"memory_fraction": "half"}, "memory_fraction='half' is a str; expected float"),
        ({"overlap": 1}, "overlap=1 is a int; expected bool"),
        (
            {"dtype": "float16"},
            "dtype='float16' is a str; expected 'auto', 'float32' or 'bfloat16'",
        ),
        ({"weights_group": 48}, "weights_group=48 is a int; expected 32, 64 or 128"),
        ({"kv_memory": 2**30}, "kv_memory=1073741824 is a int; expected str or None"),
        ({"lora": "a=b"}, "lora='a=b' is a str; expected a tuple of str"),
        ({"lora": ("a=b", 1)}, "expected a tuple of str"),
        ({"max_loras": 1.5}, "max_loras=1.5 is a float; expected int or None"),
    ],
)
def test_values_of_the_wrong_type(options: dict[str, object], message: str) -> None:
    for make in (lambda: EngineConfig(model="m", **options), lambda: EngineConfig.from_options(options)):  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=re.escape(message)):
            make()


def test_options_of_python_callers() -> None:
    config = EngineConfig.from_options({"model": Path("a/b"), "lora": ["x=y"], "memory_fraction": 1})
    assert config == EngineConfig(model="a/b", lora=("x=y",), memory_fraction=1)


def test_unknown_options_are_named_with_their_neighbours() -> None:
    with pytest.raises(ConfigError, match="option 'max_seqs' is unknown; did you mean 'max_sequences'"):
        EngineConfig.from_options({"max_seqs": 4})
    with pytest.raises(ConfigError, match="option 'tensor_parallel_size' is unknown; The options are the fields of"):
        EngineConfig.from_options({"tensor_parallel_size": 4})


def test_options_mirror_the_config() -> None:
    of_config = get_type_hints(EngineConfig)
    del of_config["model"]
    assert get_type_hints(EngineOptions) == of_config
