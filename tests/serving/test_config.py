"""EngineConfig: ranges, sizes, and the options that mirror it."""

from __future__ import annotations

from typing import get_type_hints

import pytest

from ryzjax.errors import ConfigError
from ryzjax.serving.config import EngineConfig, EngineOptions, parse_bytes


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


def test_options_mirror_the_config() -> None:
    of_config = get_type_hints(EngineConfig)
    del of_config["model"]
    assert get_type_hints(EngineOptions) == of_config
