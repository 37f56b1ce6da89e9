"""Flags from dataclasses, with a TOML file underneath: a flag wins over the file, the file over the default."""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar, get_type_hints

import tyro

from ryzjax.errors import ConfigError
from ryzjax.shipped import shipped_path

__all__ = ["Section", "parse"]

Command = TypeVar("Command")
Section = tyro.conf.OmitArgPrefixes
"""Marks a field of a command that is a config dataclass: its fields become flags of the command."""


def parse(command: type[Command], name: str, argv: Sequence[str]) -> Command:
    """The command's dataclass, filled from `argv`.

    Args:
      command: a dataclass; fields that are dataclasses themselves are config sections.
      name: as typed, for the usage line.
      argv: what follows the name. `--config` names a TOML file, or one shipped in configs/serve.

    Raises:
      ConfigError: the file is missing, is not TOML, or has a key no flag has.
      SystemExit: tyro's, for wrong flags and for --help.
    """
    values = _file_values(argv)
    default = _default(command, values)
    if values:
        known = sorted(_flag_names(command))
        unknown = next(iter(values))
        near = difflib.get_close_matches(unknown, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(known)}"
        raise ConfigError(f"--config: unknown key {unknown!r}{hint}")
    return tyro.cli(command, prog=f"ryzjax {name}", args=list(argv), default=default)


def _file_values(argv: Sequence[str]) -> dict[str, object]:
    for i, word in enumerate(argv):
        if word == "--config" and i + 1 < len(argv):
            return _load(argv[i + 1])
        if word.startswith("--config="):
            return _load(word.removeprefix("--config="))
    return {}


def _load(name_or_path: str) -> dict[str, object]:
    path = Path(name_or_path)
    if path.suffix != ".toml":
        path = shipped_path(f"serve/{name_or_path}.toml")
    if not path.is_file():
        names = sorted(p.stem for p in shipped_path("serve").glob("*.toml"))
        raise ConfigError(f"--config {name_or_path!r}: no such file; give a TOML file or one of {names}")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--config {path} is not valid TOML: {error}") from error


def _default(command: type[Command], values: dict[str, object]) -> Command:
    """An instance with the file's values; takes them out of `values`. Required fields are left to the flags."""
    assert dataclasses.is_dataclass(command)
    arguments: dict[str, object] = {}
    for field in dataclasses.fields(command):
        section = _section(command, field.name)
        if section is not None:
            arguments[field.name] = _default(section, values)
        elif field.name in values:
            arguments[field.name] = values.pop(field.name)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            arguments[field.name] = tyro.MISSING
    return command(**arguments)


def _flag_names(command: type) -> set[str]:
    names: set[str] = set()
    for field in dataclasses.fields(command):
        section = _section(command, field.name)
        names |= {field.name} if section is None else _flag_names(section)
    return names


def _section(command: type, field_name: str) -> type | None:
    kind = get_type_hints(command)[field_name]
    return kind if dataclasses.is_dataclass(kind) and isinstance(kind, type) else None
