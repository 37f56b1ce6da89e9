"""Command-line arguments: flags override a TOML file, which overrides defaults."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from ryzjax.cli.arguments import parse
from ryzjax.cli.generate import Generate
from ryzjax.cli.serve import Serve
from ryzjax.errors import ConfigError
from ryzjax.shipped import shipped_path


@pytest.fixture
def toml(tmp_path: Path) -> Path:
    return tmp_path / "serve.toml"


def serve(*words: str | Path) -> Serve:
    return parse(Serve, "serve", [str(word) for word in words])


def test_defaults() -> None:
    command = serve("m")
    assert command.engine.model == "m" and command.engine.dtype == "auto"
    assert command.http.host == "127.0.0.1" and command.http.port == 8000


def test_file_sets_every_section_and_flags_win(toml: Path) -> None:
    toml.write_text('dtype = "bfloat16"\nport = 9000\nlog_format = "json"\noverlap = false\ndrain_timeout_s = 5\n')
    command = serve("m", "--config", toml)
    assert (command.engine.dtype, command.engine.overlap) == ("bfloat16", False)
    assert (command.http.port, command.http.drain_timeout_s, command.log_format) == (9000, 5.0, "json")
    command = serve(f"--config={toml}", "m", "--port", "9001", "--overlap", "--dtype=float32")
    assert (command.engine.dtype, command.engine.overlap, command.http.port) == ("float32", True, 9001)


def test_file_names_the_model_and_the_command_line_another(toml: Path) -> None:
    toml.write_text('model = "from-file"\n')
    assert serve("--config", toml).engine.model == "from-file"
    assert serve("typed", "--config", toml).engine.model == "typed"


def test_a_list_does_not_swallow_the_model(toml: Path) -> None:
    toml.write_text('prompt = ["one", "two"]\n')
    command = parse(Generate, "generate", ["m", "--config", str(toml)])
    assert command.engine.model == "m" and command.prompt == ("one", "two")


def test_only_the_combination_must_be_valid(toml: Path) -> None:
    toml.write_text("max_batch_tokens = 16\n")
    with pytest.raises(ConfigError, match="max_batch_tokens=16 is less than max_sequences=32"):
        serve("m", "--config", toml)
    assert serve("m", "--config", toml, "--max-sequences", "8").engine.max_batch_tokens == 16


@pytest.mark.parametrize("path", sorted(shipped_path("serve").glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_files(path: Path) -> None:
    by_name, by_path = serve("m", "--config", path.stem), serve("m", "--config", path)
    assert by_name.engine == by_path.engine
    for key, value in tomllib.loads(path.read_text()).items():
        assert getattr(by_name.engine, key) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("max_sequnces = 4", "unknown key 'max_sequnces'; did you mean 'max_sequences'"),
        ("zzz = 4", "unknown key 'zzz'; known keys: .*max_sequences"),
        ("config = 'cpu'", "unknown key 'config'"),
        ("[engine]\nport = 1", "unknown key 'engine'"),
        ("port = 'abc'", "port='abc': Input should be a valid integer"),
        ("port = true", "port=True: Input should be a valid integer"),
        ("overlap = 'yes'", "overlap='yes': Input should be a valid boolean"),
        ("dtype = 'float99'", "dtype='float99': Input should be 'auto', 'float32' or 'bfloat16'"),
        ("kv_memory = 5", "kv_memory=5: Input should be a valid string"),
        ("port = 99999", "port=99999 is out of range"),
        ("port = ", "is not valid TOML"),
    ],
)
def test_bad_files(toml: Path, text: str, message: str) -> None:
    toml.write_text(text)
    with pytest.raises(ConfigError, match=message):
        serve("m", "--config", toml)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such file; give a TOML file or one of \['cpu', 'gpu'\]"):
        serve("m", "--config", tmp_path / "none.toml")
