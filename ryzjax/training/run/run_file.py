"""run.json: the settings of a run, written at its start, and how the run ended."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.training.run.json_value import Json

__all__ = ["RUN_FILE", "RunFile", "check_same_run", "earlier_dtype", "read_run", "write_run"]

RUN_FILE = "run.json"
_WHAT_IS_TRAINED = ("base.", "model.", "lora.")
"""Prefixes of the settings that define what is trained. A run with other values of these is another run; its length,
data and optimizer may change."""


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """The content of run.json.

    Attributes:
      settings: The settings that the run was started with, flat.
      is_finished: Whether the run has ended.
    """

    settings: Mapping[str, Json]
    is_finished: bool


def read_run(folder: Path) -> RunFile | None:
    """Returns the run of a folder; None if no run was started in it.

    Raises:
      CheckpointError: run.json cannot be read or is damaged.
    """
    path = folder / RUN_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        settings = content["settings"]
        if not isinstance(settings, dict):
            raise TypeError(f"settings is a {type(settings).__name__}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: not the settings of a run ({error}); remove it, or name another folder"
        ) from error
    return RunFile(settings=cast("dict[str, Json]", settings), is_finished=content.get("finished") is not None)


def write_run(folder: Path, settings: Mapping[str, Json], ended: Mapping[str, object] | None = None) -> None:
    """Writes run.json atomically.

    Args:
      folder: Folder of the run. Created if missing.
      settings: Settings of the run.
      ended: How the run ended; None at its start.

    Raises:
      CheckpointError: The file cannot be written.
    """
    finished = None if ended is None else time.strftime("%F")
    content = {**(ended or {}), "settings": dict(settings), "finished": finished}
    part = folder / f"{RUN_FILE}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
        part.replace(folder / RUN_FILE)
    except OSError as error:
        raise CheckpointError(
            f"{part}: cannot be written ({error.strerror}); check path, permissions and disk"
        ) from error


def earlier_dtype(folder: Path, name: str) -> str | None:
    """Returns the dtype that the run in a folder computes in; None if there is no run.

    Args:
      folder: Folder of the run.
      name: Name of the setting, such as "base.dtype".
    """
    earlier = read_run(folder)
    return None if earlier is None else cast("str | None", earlier.settings.get(name))


def check_same_run(folder: Path, earlier: RunFile | None, settings: Mapping[str, Json]) -> None:
    """Checks that a folder without a checkpoint may be used with `resume`: it is empty or holds this run.

    Raises:
      ConfigError: The folder holds another run, or a finished one.
    """
    if earlier is None:
        return
    if earlier.is_finished:
        raise ConfigError(
            f"{folder} has a finished run in it, whose checkpoints are gone; name another folder, or leave out "
            "--resume to train it again"
        )
    for name, value in settings.items():
        if name.startswith(_WHAT_IS_TRAINED) and name in earlier.settings and earlier.settings[name] != value:
            raise ConfigError(
                f"{folder} has another run in it: {name} was {earlier.settings[name]!r}, and is {value!r}. Use the "
                "settings of that run, name another folder, or leave out --resume to start a new run"
            )
