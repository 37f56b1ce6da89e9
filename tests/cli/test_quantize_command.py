"""`ryzjax quantize`: recipes from files, and flags that override them."""

from __future__ import annotations

from pathlib import Path

import pytest

from ryzjax.cli.arguments import parse
from ryzjax.cli.quantize import Quantize
from ryzjax.errors import ConfigError
from ryzjax.quant.recipe import Recipe
from ryzjax.shipped import shipped_path

SHIPPED = sorted(path.stem for path in shipped_path("quantize").glob("*.toml"))


def recipe(command: Quantize) -> Recipe:
    return Recipe(
        method=command.method or "auto",
        bits=command.bits,
        group_size=command.group_size,
        symmetric=not command.asymmetric,
        int8_activations=command.int8_activations,
        overrides=command.overrides,
        target_bits=command.target_bits,
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_recipes_are_recipes(name: str):
    recipe(parse(Quantize, "quantize", ["model", "--config", name]))


def test_a_file_and_flags_over_it(tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text('bits = 8\ngroup_size = 64\nmethod = "rtn"\n[overrides]\n"mlp.down" = 16\n')
    command = parse(Quantize, "quantize", ["model", "--config", str(path), "--group-size", "32"])
    assert (command.model, command.bits, command.group_size, command.method) == ("model", 8, 32, "rtn")
    assert command.overrides == {"mlp.down": 16}


@pytest.mark.parametrize(
    ("text", "message"),
    [("bit = 4", "did you mean 'bits'"), ("bits = 5", "bits=5"), ('[overrides]\n"a" = "b"', "overrides=")],
)
def test_files_with_mistakes(text: str, message: str, tmp_path: Path):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse(Quantize, "quantize", ["model", "--config", str(path)])


def test_a_name_that_is_not_shipped():
    with pytest.raises(ConfigError, match=r"no such file.*mixed.*w4"):
        parse(Quantize, "quantize", ["model", "--config", "w5"])
