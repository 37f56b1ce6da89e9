"""publish_adapter: loads an adapter from a local folder into a running server."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import httpx

from ryzjax.errors import CheckpointError, ConfigError, PublishError

__all__ = ["publish_adapter"]

_FILES = ("adapter_config.json", "adapter_model.safetensors")


def publish_adapter(
    url: str,
    name: str,
    folder: Path,
    *,
    api_key: str | None = None,
    replace: bool = True,
    by_path: bool = False,
    timeout_s: float = 120.0,
) -> str:
    """Loads an adapter into a running server, which serves it from then on.

    Args:
      url: URL of the server, with or without /v1. The server must run with --allow-lora-updating.
      name: The model name by which requests select the adapter.
      folder: The adapter's directory, in PEFT's layout.
      api_key: The server's API key, if it has one.
      replace: Whether to replace a loaded adapter of the same name.
      by_path: Whether to send the folder's path instead of its files. The server must see the folder at that path.
      timeout_s: Seconds to wait for the server's answer.

    Returns:
      The server's answer.

    Raises:
      CheckpointError: A file is missing, cannot be read, or is not valid JSON.
      ConfigError: The URL is not an HTTP URL.
      PublishError: The server cannot be reached, or refuses the adapter. The message has its reason.
    """
    base = url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise ConfigError(f"publish URL {url!r} is not supported; expected one such as http://127.0.0.1:8000")
    headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
    config, weights = (_read(folder / file) for file in _FILES)
    if by_path:
        method, path = "POST", "/v1/load_lora_adapter"
        body: dict[str, object] = {"lora_name": name, "lora_path": str(folder.resolve())}
    else:
        method, path = "PUT", f"/v1/lora_adapters/{quote(name)}"
        body = {"adapter_config": _json(config, folder), "adapter_model": base64.b64encode(weights).decode("ascii")}
    body["load_inplace"] = replace
    try:
        answer = httpx.request(method, base + path, json=body, headers=headers, timeout=timeout_s)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise PublishError(
            f"adapter {name!r} could not be sent to {base}: {error}; is the server up? The adapter is in {folder}"
        ) from error
    if answer.is_success:
        return answer.text
    raise PublishError(
        f"{base} refused adapter {name!r} ({answer.status_code}): {_reason(answer)}; the adapter is in {folder}"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror or error}); check the path and its permissions"
        ) from error


def _json(content: bytes, folder: Path) -> object:
    try:
        return json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{folder / _FILES[0]}: not valid JSON ({error}); save the adapter again") from error


def _reason(answer: httpx.Response) -> str:
    """Returns the message of an error in OpenAI's format, or the start of the answer if it has another format."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]
