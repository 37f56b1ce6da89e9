"""Adapters over HTTP: chosen by `model`, listed, loaded, replaced and unloaded, and refused unless allowed."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import openai
import pytest

from ryzjax.client.publish import publish_adapter
from ryzjax.errors import CheckpointError, ConfigError, PublishError
from tests.serving.http.harness import Running, serve


@pytest.fixture
def open_server() -> Iterator[Running]:
    with serve(allow_lora_updating=True, max_adapter_bytes=200_000, max_body_bytes=10_000) as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    target = tmp_path / "sql-adapter"
    target.mkdir()
    (target / "adapter_config.json").write_text('{"mood": "good"}')
    (target / "adapter_model.safetensors").write_bytes(bytes(range(256)) * 80)
    return target


def load(running: Running, folder: Path | str, name: str = "sql", **more: object) -> httpx.Response:
    body = {"lora_name": name, "lora_path": str(folder), **more}
    return running.http.post("/v1/load_lora_adapter", json=body)


def error_of(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["error"]["code"]


def test_loaded_listed_used_and_unloaded(open_server: Running, folder: Path) -> None:
    answer = load(open_server, folder)
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'sql' added successfully.")
    base, card = open_server.http.get("/v1/models").json()["data"]
    assert base["id"] == "fake" and "parent" not in base
    assert (card["id"], card["parent"], card["root"], card["lora_rank"]) == ("sql", "fake", "sql-adapter", 8)
    assert open_server.http.get("/v1/models/sql").json() == card
    for model, adapter in (("sql", "sql"), ("fake", None)):
        answer = open_server.openai.completions.create(model=model, prompt="abc", max_tokens=2)
        assert answer.model == model
        messages = [{"role": "user", "content": "abc"}]
        chunks = list(open_server.openai.chat.completions.create(model=model, messages=messages, stream=True))  # type: ignore[arg-type]
        assert {chunk.model for chunk in chunks} == {model}
        embedded = open_server.openai.embeddings.create(model=model, input="abc")
        assert embedded.model == model
        assert open_server.engine.ran_with[-3:] == [adapter] * 3
    answer = open_server.http.post("/v1/unload_lora_adapter", json={"lora_name": "sql", "lora_int_id": 1})
    assert (answer.status_code, answer.text) == (200, "Success: LoRA adapter 'sql' removed successfully.")
    with pytest.raises(openai.NotFoundError, match="'sql' is not served here; use 'fake'") as caught:
        open_server.openai.completions.create(model="sql", prompt="abc")
    assert caught.value.code == "model_not_found"


def test_errors_of_loading(open_server: Running, folder: Path, tmp_path: Path) -> None:
    assert load(open_server, folder).status_code == 200
    assert load(open_server, folder).status_code == 409
    assert load(open_server, folder, load_inplace=True).status_code == 200
    odd = ["x" * 256, "a/" + "x" * 300 + "/b", "a/" * 4000, "a\0b", f"{folder}\0"]
    for path in ("", tmp_path / "nothing", folder / "adapter_config.json", "org/on-the-hub", *odd):
        answer = load(open_server, path, "other")
        assert answer.status_code == 400 and "not a directory of this server" in answer.json()["error"]["message"]
    (folder / "adapter_config.json").write_text("bad")
    assert error_of(load(open_server, folder, load_inplace=True)) == (400, "invalid_adapter")
    for body in ({}, {"lora_name": "x"}, {"lora_name": "x", "lora_path": str(folder), "lora_pth": 1}):
        assert open_server.http.post("/v1/load_lora_adapter", json=body).status_code == 400
    answer = open_server.http.post("/v1/unload_lora_adapter", json={"lora_name": "nobody"})
    assert error_of(answer) == (404, "model_not_found")
    assert error_of(open_server.http.delete("/v1/lora_adapters/nobody")) == (404, "model_not_found")
    assert [name for name, _, _ in open_server.engine.loaded] == ["sql", "sql"]


def test_a_folder_that_cannot_be_read(open_server: Running, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> Iterator[Path]:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", denied)
    answer = load(open_server, folder)
    assert error_of(answer) == (400, "invalid_adapter")
    assert f"adapter {folder}: cannot be read (Permission denied)" in answer.json()["error"]["message"]


def test_an_answer_names_no_folder_but_the_clients(
    open_server: Running, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "adapter_config.json").write_text("bad")
    monkeypatch.chdir(folder.parent)
    with caplog.at_level("WARNING"):
        answer = load(open_server, folder.name)
    assert str(folder.parent) not in answer.text and folder.name in answer.text
    assert any("bad" in str(vars(record).get("error")) for record in caplog.records)


def test_off_unless_allowed(running: Running, folder: Path) -> None:
    requests = [
        ("POST", "/v1/load_lora_adapter", {"lora_name": "x", "lora_path": str(folder)}),
        ("POST", "/v1/unload_lora_adapter", {"lora_name": "x"}),
        ("PUT", "/v1/lora_adapters/x", {"adapter_config": {}, "adapter_model": ""}),
        ("DELETE", "/v1/lora_adapters/x", None),
    ]
    for method, path, body in requests:
        answer = running.http.request(method, path, json=body)
        assert error_of(answer) == (403, "lora_updating_disabled")
        assert "--allow-lora-updating" in answer.json()["error"]["message"]
    assert not running.engine.loaded


def test_the_key_is_demanded(folder: Path) -> None:
    with serve(allow_lora_updating=True, api_key="secret") as running:
        assert load(running, folder).status_code == 401
        with pytest.raises(PublishError, match=r"401.*API key"):
            publish_adapter(f"http://127.0.0.1:{running.server.port}", "sql", folder)
        url = f"http://127.0.0.1:{running.server.port}/v1/"
        assert "'sql' added" in publish_adapter(url, "sql", folder, api_key="secret")


@pytest.mark.parametrize("by_path", [False, True])
def test_published(open_server: Running, folder: Path, by_path: bool) -> None:
    url = f"http://127.0.0.1:{open_server.server.port}"
    publish_adapter(url, "team/sql", folder, by_path=by_path)
    publish_adapter(url, "team/sql", folder, by_path=by_path)
    name, files, replace = open_server.engine.loaded[-1]
    assert (name, replace) == ("team/sql", True)
    assert json.loads(files["adapter_config.json"]) == {"mood": "good"}
    assert files["adapter_model.safetensors"] == (folder / "adapter_model.safetensors").read_bytes()
    with pytest.raises(PublishError, match=r"\(409\): .*already been loaded"):
        publish_adapter(url, "team/sql", folder, by_path=by_path, replace=False)
    assert open_server.http.get("/v1/models/team/sql").json()["root"] == ("sql-adapter" if by_path else "upload")
    assert open_server.http.delete("/v1/lora_adapters/team/sql").status_code == 200


def test_uploads_that_are_refused(open_server: Running, folder: Path) -> None:
    def put(**changes: object) -> httpx.Response:
        body = {"adapter_config": {"mood": "good"}, "adapter_model": base64.b64encode(b"x").decode()} | changes
        return open_server.http.put("/v1/lora_adapters/x", json=body)

    assert put().status_code == 200
    assert put(load_inplace=True, adapter_model="?").json()["error"]["param"] == "adapter_model"
    answer = put(load_inplace=True, adapter_config={"mood": "sad"})
    assert error_of(answer) == (400, "invalid_adapter")
    assert "the upload" in answer.json()["error"]["message"] and "ryzjax-adapter-" not in answer.text
    # Larger than a prompt may be, but not larger than an adapter may be.
    assert put(load_inplace=True, adapter_model=base64.b64encode(bytes(60_000)).decode()).status_code == 200
    answer = put(load_inplace=True, adapter_model=base64.b64encode(bytes(300_000)).decode())
    assert error_of(answer) == (413, "body_too_large") and "max_adapter_bytes" in answer.text
    assert open_server.post(prompt="x" * 20_000).status_code == 413


def test_publishing_to_nobody(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(PublishError, match="is the server up"):
        publish_adapter("http://127.0.0.1:9", "x", folder, timeout_s=2)
    with pytest.raises(ConfigError, match="publish URL"):
        publish_adapter("127.0.0.1:8000", "x", folder)
    with pytest.raises(CheckpointError, match="cannot be read"):
        publish_adapter("http://127.0.0.1:9", "x", tmp_path / "nothing")
