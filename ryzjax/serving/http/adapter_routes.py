"""Routes that load and unload adapters while the server runs: the two of vLLM, and uploads.

    POST   /v1/load_lora_adapter      {"lora_name", "lora_path", "load_inplace"}    a directory of the server
    POST   /v1/unload_lora_adapter    {"lora_name"}
    PUT    /v1/lora_adapters/NAME     {"adapter_config", "adapter_model", "load_inplace"}    the files in the body
    DELETE /v1/lora_adapters/NAME

They let a client make the server read its directories, so all of them answer 403 unless `allow_lora_updating` is set.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

from fastapi import APIRouter, Request
from pydantic import JsonValue
from starlette.responses import PlainTextResponse, Response

from ryzjax.errors import CheckpointError, ConfigError, RequestError
from ryzjax.serving.http.context import ServerContext, context_of
from ryzjax.serving.http.errors import LoraUpdatingDisabledError
from ryzjax.serving.http.openai.fields import Integer, JsonBody

__all__ = ["ADAPTERS_PATH", "router"]

ADAPTERS_PATH = "/v1/lora_adapters/"
"""Prefix of the paths whose bodies may have up to `max_adapter_bytes`."""
_PIECE_CHARS = 1 << 20
_CONFIG_FILE, _WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"

router = APIRouter()
logger = logging.getLogger(__name__)


class LoadRequest(JsonBody):
    """Body of /v1/load_lora_adapter. `load_inplace` replaces an adapter of the same name."""

    lora_name: str
    lora_path: str
    load_inplace: bool | None = None


class UnloadRequest(JsonBody):
    """Body of /v1/unload_lora_adapter. `lora_int_id`, which vLLM uses, is accepted and ignored."""

    lora_name: str
    lora_int_id: Integer | None = None


class UploadRequest(JsonBody):
    """Body of PUT /v1/lora_adapters/NAME: adapter_config.json as an object and
    adapter_model.safetensors in base64.
    """

    adapter_config: dict[str, JsonValue]
    adapter_model: str
    load_inplace: bool | None = None


@router.post("/v1/load_lora_adapter")
async def load(request: Request) -> Response:
    """Loads an adapter from a directory of the server."""
    context = _admitted(request)
    body = await context.read(request, LoadRequest)
    folder = Path(body.lora_path)
    if not _is_directory(body.lora_path):
        raise RequestError(
            f"lora_path={body.lora_path[:200]!r} is not a directory of this server; give one that holds {_CONFIG_FILE} "
            f"and {_WEIGHTS_FILE}, or upload the files with PUT {ADAPTERS_PATH}NAME",
            param="lora_path",
        )
    await _load(context, lambda: _load_folder(context, body, folder))
    return PlainTextResponse(f"Success: LoRA adapter '{body.lora_name}' added successfully.")


@router.post("/v1/unload_lora_adapter")
async def unload(request: Request) -> Response:
    """Removes an adapter. Requests that run with it still finish."""
    context = _admitted(request)
    body = await context.read(request, UnloadRequest)
    return _unload(context, body.lora_name)


@router.put("/v1/lora_adapters/{name:path}")
async def upload(request: Request, name: str) -> Response:
    """Loads an adapter from the files in the body."""
    context = _admitted(request)
    body = await context.read(request, UploadRequest)
    await _load(context, lambda: _load_upload(context, name, body))
    return PlainTextResponse(f"Success: LoRA adapter '{name}' added successfully.")


@router.delete("/v1/lora_adapters/{name:path}")
async def delete(request: Request, name: str) -> Response:
    """Removes an adapter, as /v1/unload_lora_adapter does."""
    return _unload(_admitted(request), name)


def _is_directory(path: str) -> bool:
    try:
        return bool(path) and Path(path).is_dir()
    except (OSError, ValueError):  # the path is too long, has a NUL byte, or is not accessible
        return False


def _admitted(request: Request) -> ServerContext:
    context = context_of(request)
    if not context.config.allow_lora_updating:
        raise LoraUpdatingDisabledError
    return context


async def _load(context: ServerContext, work: Callable[[], object]) -> None:
    """Loads an adapter on a thread. One is loaded at a time, because loading holds several copies of its bytes."""
    async with context.loading:
        try:
            await asyncio.to_thread(work)
        except (ConfigError, CheckpointError) as error:
            logger.warning("adapter refused", extra={"error": str(error)})
            raise RequestError(str(error), code="invalid_adapter") from error


def _load_folder(context: ServerContext, body: LoadRequest, folder: Path) -> None:
    try:
        context.engine.load_adapter(body.lora_name, folder, replace=bool(body.load_inplace))
    except OSError as error:
        # The directory exists, but the server has no permission to read it.
        raise CheckpointError(f"adapter {folder}: cannot be read ({error.strerror}); check its permissions") from error


def _load_upload(context: ServerContext, name: str, body: UploadRequest) -> None:
    with tempfile.TemporaryDirectory(prefix="ryzjax-adapter-") as folder:
        (Path(folder) / _CONFIG_FILE).write_text(json.dumps(body.adapter_config), encoding="utf-8")
        _write_decoded(Path(folder) / _WEIGHTS_FILE, body.adapter_model)
        try:
            context.engine.load_adapter(name, Path(folder), replace=bool(body.load_inplace), root="upload")
        except (ConfigError, CheckpointError) as error:
            # The temporary directory is gone when the client reads the message.
            raise CheckpointError(str(error).replace(folder, "the upload")) from error


def _write_decoded(path: Path, encoded: str) -> None:
    """Decodes base64 into a file piece by piece. One call for all of it would block every other thread."""
    try:
        with path.open("wb") as file:
            for start in range(0, len(encoded), _PIECE_CHARS):
                file.write(base64.b64decode(encoded[start : start + _PIECE_CHARS], validate=True))
    except (binascii.Error, ValueError) as error:
        raise RequestError(f"adapter_model is not base64: {error}", param="adapter_model") from error


def _unload(context: ServerContext, name: str) -> Response:
    try:
        context.engine.unload_adapter(name)
    except ConfigError as error:
        raise RequestError(str(error), code="invalid_adapter") from error
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")
