"""Command-line flags from dataclasses, with a TOML file of defaults.

A flag overrides the file of `--config`, and the file overrides the default of the field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import sys
from collections.abc import Sequence
from typing import TypeVar, get_args, get_type_hints

import tyro

from ryzjax.cli.config_file import check_values, file_values
from ryzjax.errors import RyzJAXError

__all__ = ["Section", "parse"]

Command = TypeVar("Command")
Section = tyro.conf.OmitArgPrefixes
"""Marks a field of a command whose type is a config dataclass. Its fields become flags of the command."""
_CONFIG_FOLDERS = {"quantize": "quantize", "finetune": "train", "pretrain": "train", "inspect-batch": "train"}
"""Command -> directory of configs that the names given to its --config refer to. All others use "serve"."""
_POSITIONAL = get_args(tyro.conf.Positional[str])[1]


def parse(command: type[Command], name: str, argv: Sequence[str]) -> Command:
    """Returns an instance of the command's dataclass, filled from `argv`.

    Args:
      command: A dataclass. Its fields that are dataclasses are config sections.
      name: The command as it was typed, for the usage line.
      argv: The words after the command. `--config` names a TOML file, or a shipped one in the command's directory.

    Raises:
      ConfigError: The file is missing, is not TOML, or has an unknown key or a value of the wrong type. Also raised
        if the values of the file and the flags together are out of range.
      SystemExit: tyro raises it for invalid flags and for --help.
    """
    values = file_values(argv, _CONFIG_FOLDERS.get(name, "serve"))
    check_values(values, _flag_types(command))
    defaults = {key: value for key, value in values.items() if _is_default(command, key, value)}
    # The other values become flags ahead of the typed ones. The last of two equal flags wins, so only the combination
    # of file and flags is checked, never the file alone.
    words = [word for key, value in values.items() if key not in defaults for word in _flag(key, value)]
    default = _default(command, defaults)
    errors = io.StringIO()
    try:
        with contextlib.redirect_stderr(errors):
            return tyro.cli(command, prog=f"ryzjax {name}", args=[*words, *argv], default=default)
    except SystemExit as stop:
        cause = _cause(stop)
        if cause is not None:
            raise cause from None
        sys.stderr.write(errors.getvalue())
        raise


def _is_default(command: type, key: str, value: object) -> bool:
    """Whether a value becomes a default instead of a flag. A list as a flag would consume the positional after it."""
    return isinstance(value, (list, dict)) or key in _positional(command)


def _flag(key: str, value: object) -> list[str]:
    name = key.replace("_", "-")
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}={value}"]


def _cause(stop: BaseException) -> RyzJAXError | None:
    """Returns the RyzJAXError that made tyro stop, or None if there is none."""
    error: BaseException | None = stop
    while error is not None and not isinstance(error, RyzJAXError):
        error = error.__cause__ or error.__context__
    return error


def _default(command: type[Command], values: dict[str, object]) -> Command:
    """Returns an instance with the given values. Required fields without a value are left to the flags."""
    assert dataclasses.is_dataclass(command)
    arguments: dict[str, object] = {}
    for field in dataclasses.fields(command):
        section = _section(command, field.name)
        if section is not None:
            arguments[field.name] = _default(section, values)
        elif field.name in values:
            value = values[field.name]
            arguments[field.name] = tuple(value) if isinstance(value, list) else value
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            arguments[field.name] = tyro.MISSING
    return command(**arguments)


def _flag_types(command: type) -> dict[str, type]:
    """Returns the type of each flag of the command and its sections, by name."""
    types: dict[str, type] = {}
    for name, kind in get_type_hints(command).items():
        section = _section(command, name)
        types |= {name: kind} if section is None else _flag_types(section)
    return types


def _positional(command: type) -> set[str]:
    names: set[str] = set()
    for name, kind in get_type_hints(command, include_extras=True).items():
        section = _section(command, name)
        if section is not None:
            names |= _positional(section)
        elif _POSITIONAL in get_args(kind)[1:]:
            names.add(name)
    return names


def _section(command: type, field_name: str) -> type | None:
    kind = get_type_hints(command)[field_name]
    return kind if dataclasses.is_dataclass(kind) and isinstance(kind, type) else None
