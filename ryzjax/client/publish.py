"""publish_adapter: hands an adapter's folder to a running server, which serves it from then on."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from urllib.parse import quote

import httpx

from ryzjax.errors import CheckpointError, ConfigError, RyzJAXError

__all__ = ["PublishError", "publish_adapter"]

_FILES = ("adapter_config.json", "adapter_model.safetensors")


class PublishError(RyzJAXError):
    """The server could not be reached, or did not take the adapter; the folder is as it was."""


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
    """Loads an adapter into a running server.

    Args:
      url: of the server, with or without /v1; it must run with --allow-lora-updating.
      name: what requests will call the adapter.
      folder: as PEFT saves it.
      api_key: the server's, where it has one.
      replace: whether the name may be taken.
      by_path: name the folder to the server, which must see it under the same path, instead of sending its files.
      timeout_s: for the server's answer.

    Returns:
      What the server says.

    Raises:
      CheckpointError: a file is missing or cannot be read.
      ConfigError: the URL is none.
      PublishError: the server cannot be reached, or refuses; with its reason.
    """
    base = url.rstrip("/").removesuffix("/v1")
    if not base.startswith(("http://", "https://")):
        raise ConfigError(f"publish URL {url!r} is not understood; expected one such as http://127.0.0.1:8000")
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
        f"{base} did not take adapter {name!r} ({answer.status_code}): {_reason(answer)}; the adapter is in {folder}"
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error


def _json(content: bytes, folder: Path) -> object:
    try:
        return json.loads(content)
    except ValueError as error:
        raise CheckpointError(f"{folder / _FILES[0]} is not valid JSON: {error}") from error


def _reason(answer: httpx.Response) -> str:
    """The message of an OpenAI-shaped error, or the start of whatever came."""
    try:
        return str(answer.json()["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return answer.text[:300]
