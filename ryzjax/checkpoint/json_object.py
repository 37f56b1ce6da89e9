"""Reads a JSON file that must hold an object, with bounds on its size and errors that name the file."""

from __future__ import annotations

import json
from pathlib import Path

from ryzjax.errors import CheckpointError

__all__ = ["read_json_object"]

_MAX_BYTES = 100_000_000


def read_json_object(path: Path) -> dict[str, object]:
    """Returns the parsed object of a JSON file.

    Raises:
      CheckpointError: The file cannot be read, is larger than 100 MB, is not valid JSON, or does not hold an object.
    """
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path}: {path.stat().st_size} bytes; expected a JSON file under {_MAX_BYTES}")
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value
