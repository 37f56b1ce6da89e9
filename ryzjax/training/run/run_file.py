"""run.json: the settings of a run from its start, and how it ended once it has."""

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
"""Settings that make it another run: of what is trained, not of how long, on what data, or with which optimizer."""


@dataclass(frozen=True, kw_only=True)
class RunFile:
    """What a folder says of the run in it.

    Attributes:
      settings: that the run was started with, flat.
      is_finished: whether it came to its end.
    """

    settings: Mapping[str, Json]
    is_finished: bool


def read_run(folder: Path) -> RunFile | None:
    """The run of a folder; None where none was started in it.

    Raises:
      CheckpointError: run.json cannot be read, or is damaged.
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
    """Writes run.json, whole or not at all.

    Args:
      folder: of the run; made if it is not there.
      settings: of the run.
      ended: how it ended; None at its start.

    Raises:
      CheckpointError: it cannot be written.
    """
    finished = None if ended is None else time.strftime("%F")
    content = {**(ended or {}), "settings": dict(settings), "finished": finished}
    part = folder / f"{RUN_FILE}.part"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(content, indent=1, default=str), encoding="utf-8")
        part.replace(folder / RUN_FILE)
    except OSError as error:
        raise CheckpointError(f"{part}: cannot be written ({error.strerror}); check path, rights and space") from error


def earlier_dtype(folder: Path, name: str) -> str | None:
    """What the run in a folder computes in; None where there is no run.

    Args:
      name: of the setting, such as "base.dtype".
    """
    earlier = read_run(folder)
    return None if earlier is None else cast("str | None", earlier.settings.get(name))


def check_same_run(folder: Path, earlier: RunFile | None, settings: Mapping[str, Json]) -> None:
    """That a folder without a checkpoint may be begun anew with `resume`: it is empty, or this run's own.

    Raises:
      ConfigError: it has another run in it, or one that is finished.
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
                f"{folder} has another run in it: {name} was {earlier.settings[name]!r}, and is {value!r}. Go on with "
                "the settings of that run, name another folder, or leave out --resume to begin anew"
            )
