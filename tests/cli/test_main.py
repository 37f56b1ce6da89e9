"""The command line as a user sees it: help, wrong flags, and errors on one line."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ryzjax import __version__
from ryzjax.cli.main import main
from ryzjax.shipped import DEMO_MODEL

COMMANDS = ["serve", "generate", "chat", "eval", "info"]


def test_usage_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(f"  {name} " in shown for name in [*COMMANDS, "bench serve", "bench offline"])
    assert main([]) == 2


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"ryzjax {__version__}\n"


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert stop.value.code == 0
    assert f"usage: ryzjax {command}" in shown and "MODEL" in shown and "--dtype" in shown
    assert "--engine." not in shown and "--http." not in shown


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["srve", "m"], "unknown command 'srve'"),
        (["bench"], "ryzjax bench serve, or ryzjax bench offline"),
        (["serve", "m", "--port", "99999"], "port=99999 is out of range; expected 0 to 65535"),
        (["serve", "m", "--memory-fraction", "nan"], "memory_fraction=nan is out of range"),
        (["serve", "m", "--kv-memory", "2 parsecs"], "size '2 parsecs' is not understood"),
        (["serve", "m", "--config", "nowhere"], "one of ['cpu', 'gpu']"),
        (["generate", "m", "--prompt", ""], "a prompt is empty"),
        (["generate", "m", "--prompt", "x", "--temperature", "-1"], "temperature=-1"),
    ],
)
def test_bad_input_is_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith("error: ") and message in shown.err
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["serve", "m", "--prot", "9"], "--port"),
        (["serve", "m", "--dtype", "float99"], "bfloat16"),
    ],
)
def test_wrong_flags_are_explained(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("by", ["flag", "environment"])
def test_debug_shows_where_it_was_raised(
    by: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["serve", "m", "--port", "99999"]
    if by == "environment":
        monkeypatch.setenv("RYZJAX_DEBUG", "1")
    else:
        words.append("--debug")
    assert main(words) == 2
    shown = capsys.readouterr().err
    assert "Traceback" in shown and shown.endswith("error: port=99999 is out of range; expected 0 to 65535\n")


def test_wrong_flags_are_found_before_jax_is_imported() -> None:
    code = (
        "import sys\nfrom ryzjax.cli.main import main\n"
        "status = main(['serve', 'm', '--port', '99999'])\n"
        "print(status, 'jax' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "2 False False\n"


def test_info_of_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", DEMO_MODEL, "--dtype", "float32"]) == 0
    words = capsys.readouterr().out.split()
    assert words[words.index("num_layers") + 2] == "5"
    assert words[words.index("vocab_size") + 2] == "3072"
    assert "attend" in words and "rms_norm" in words and "xla" in words


def test_generate_continues_the_prompt(compile_cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", DEMO_MODEL, "--prompt", "Once upon a time", "--max-tokens", "4", "--temperature", "0"]
    words += ["--max-sequences", "1", "--max-batch-tokens", "16"]
    assert main([*words, "--dtype", "float32", "--compile-cache", compile_cache]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("Once upon a time") and len(shown.strip()) > len("Once upon a time")
