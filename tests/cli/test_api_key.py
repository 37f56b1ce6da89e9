"""The API key comes from a flag or the TOML file, else from the environment, and is never shown."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from ryzjax.api_key import api_key_or_environment
from ryzjax.bench.serve import BenchServe
from ryzjax.cli.arguments import parse
from ryzjax.cli.finetune import Finetune
from ryzjax.cli.main import main
from ryzjax.cli.serve import Serve
from ryzjax.errors import ConfigError
from ryzjax.serving.http import HttpConfig
from tests.serving.http.fake_engine import FakeEngine
from tests.serving.http.harness import serve


@pytest.fixture
def served_with(monkeypatch: pytest.MonkeyPatch) -> list[HttpConfig]:
    """Returns the settings with which `ryzjax serve` would start its server, without loading anything."""
    started: list[HttpConfig] = []

    class Server:
        host, port = "127.0.0.1", 1

        def __init__(self, engine: FakeEngine, config: HttpConfig, **_: object):
            started.append(config)

        def run(self) -> int:
            return 0

    class Engine(FakeEngine):
        metrics = None

        def stop(self) -> None:
            pass

    monkeypatch.setattr("ryzjax.serving.frontend.launch.launch_engine", lambda *_, **__: Engine())
    monkeypatch.setattr("ryzjax.serving.http.server.HttpServer", Server)
    return started


def test_who_wins(served_with: list[HttpConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toml = tmp_path / "serve.toml"
    toml.write_text('api_key = "of-the-file"\n')
    monkeypatch.delenv("RYZJAX_API_KEY", raising=False)
    assert main(["serve", "m"]) == 0
    monkeypatch.setenv("RYZJAX_API_KEY", "of-the-environment")
    assert main(["serve", "m"]) == 0
    assert main(["serve", "m", "--config", str(toml)]) == 0
    assert main(["serve", "m", "--config", str(toml), "--api-key", "of-the-flag"]) == 0
    keys = [config.api_key for config in served_with]
    assert keys == [None, "of-the-environment", "of-the-file", "of-the-flag"]


@pytest.mark.parametrize("key", ["", "sesame\n", "s\u00e9same"])
def test_a_bad_key_is_refused_and_not_shown(
    served_with: list[HttpConfig], key: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RYZJAX_API_KEY", key)
    assert main(["serve", "m", "--debug"]) == 2
    shown = capsys.readouterr()
    assert "error: " in shown.err and not served_with
    assert "same" not in shown.err + shown.out
    if not key:
        with pytest.raises(ConfigError, match="RYZJAX_API_KEY is set but empty; give it a key, or unset it"):
            api_key_or_environment(None)


def test_it_is_not_in_help_logs_or_representations(
    served_with: list[HttpConfig], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RYZJAX_API_KEY", "sesame")
    for command in ("serve", "bench serve", "finetune"):
        with pytest.raises(SystemExit):
            main([*command.split(), "--help"])
        shown = capsys.readouterr().out
        assert "RYZJAX_API_KEY" in shown and "sesame" not in shown
    assert main(["serve", "m", "--log-level", "debug"]) == 0
    shown = capsys.readouterr()
    assert "serving" in shown.err and "sesame" not in shown.err + shown.out
    words = ["m", "--api-key", "sesame"]
    for made in (parse(Serve, "serve", words), parse(Finetune, "finetune", words), BenchServe(api_key="sesame")):
        assert "sesame" not in repr(made)


def test_a_file_with_a_key_of_the_wrong_type_does_not_show_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toml = tmp_path / "serve.toml"
    toml.write_text("api_key = 271828\n")
    assert main(["serve", "m", "--config", str(toml), "--debug"]) == 2
    shown = capsys.readouterr().err
    assert "api_key=...: Input should be a valid string" in shown and "271828" not in shown


def test_the_benchmark_sends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with serve(api_key="sesame") as running:
        url = f"http://127.0.0.1:{running.server.port}"
        bench = BenchServe(base_url=url, num_prompts=2, input_tokens=5, output_tokens=2, warmup=0)
        monkeypatch.delenv("RYZJAX_API_KEY", raising=False)
        with pytest.raises(ConfigError):
            bench.run()
        monkeypatch.setenv("RYZJAX_API_KEY", "sesame")
        assert bench.run() == 0
        assert httpx.get(f"{url}/v1/models").status_code == 401
