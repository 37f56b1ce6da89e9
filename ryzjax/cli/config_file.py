"""The TOML file of `--config`: reads it and checks its values against the types of the flags."""

from __future__ import annotations

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path

from ryzjax.errors import ConfigError
from ryzjax.shipped import shipped_path

__all__ = ["check_values", "file_values"]

_SECRETS = frozenset({"api_key"})


def file_values(argv: Sequence[str], folder: str) -> dict[str, object]:
    """Returns the values in the file that `argv` names with --config; an empty dict if it names none.

    Args:
      argv: The words after the command.
      folder: The directory of shipped files in which a bare name is looked up, such as "serve".

    Raises:
      ConfigError: The file does not exist or is not TOML.
    """
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            return _load(argv[i + 1], folder)
        if word.startswith("--config="):
            return _load(word.removeprefix("--config="), folder)
    return {}


def check_values(values: Mapping[str, object], types: Mapping[str, type]) -> None:
    """Checks the values of a file against the types of the flags.

    Raises:
      ConfigError: A key is unknown, or a value has the wrong type.
    """
    if not values:
        return
    from pydantic import TypeAdapter, ValidationError

    known = sorted(set(types) - {"config"})
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
            raise ConfigError(f"--config: unknown key {key!r}{hint}")
        try:
            # The check is strict, and in JSON mode it still accepts a list for a tuple.
            TypeAdapter(types[key]).validate_json(json.dumps(value, default=str), strict=True)
        except ValidationError as error:
            # `from error` would show the secret in a traceback.
            shown = "..." if key in _SECRETS else repr(value)
            cause = None if key in _SECRETS else error
            raise ConfigError(f"--config: {key}={shown}: {error.errors()[0]['msg']}") from cause


def _load(name_or_path: str, folder: str) -> dict[str, object]:
    path = Path(name_or_path)
    shipped = {file.stem: file for file in shipped_path(folder).glob("*.toml")}
    if path.suffix != ".toml":
        path = shipped.get(name_or_path, path)
    if not path.is_file():
        names = sorted(shipped)
        raise ConfigError(f"--config {name_or_path!r}: no such file; give a TOML file or one of {names}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"--config {path} is not valid TOML: {error}") from error
