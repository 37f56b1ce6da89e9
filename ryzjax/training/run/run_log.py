"""Logs of a run's figures: a JSONL file, TensorBoard, and Weights & Biases."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

from ryzjax.errors import DataError, LogError, MissingExtraError

__all__ = ["JsonlLog", "RunLog", "RunLogs", "TensorBoardLog", "WandbLog", "read_log"]


class RunLog(Protocol):
    """A destination for figures."""

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs figures after `step` updates, such as loss, eval_loss, learning_rate, grad_norm, tokens,
        tokens_per_s."""
        ...

    def close(self) -> None:
        """Writes what is buffered and closes the log."""
        ...


class RunLogs:
    """Several logs as one."""

    def __init__(self, logs: Sequence[RunLog]):
        self._logs = tuple(logs)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Logs to each log, in order."""
        for log in self._logs:
            log.log(step, figures)

    def close(self) -> None:
        """Closes each log."""
        for log in self._logs:
            log.close()


class JsonlLog:
    """One JSON object per line: {"step": 10, "loss": 1.5, ...}. NaN and infinity are null, because JSON has neither.

    A run that resumes from step N removes the lines after step N, including a line that a kill cut short, and then
    appends. The file equals that of an uninterrupted run.

    Args:
      path: The file. Its folder is created.
      resumed_step: Updates done before; 0 starts an empty file.

    Raises:
      LogError: The file cannot be written.
    """

    def __init__(self, path: Path, *, resumed_step: int = 0):
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = _lines_to_keep(path, resumed_step) if resumed_step else b""
            # Replaced atomically: a kill here must not lose the figures so far.
            part = path.with_name(f"{path.name}.part")
            part.write_bytes(kept)
            part.replace(path)
            # Unbuffered: a line that cannot be written leaves nothing behind that fails again later.
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise LogError(f"{path}: cannot be written ({error.strerror}); check path, permissions and disk") from error

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Writes a line at once.

        Raises:
          LogError: The line cannot be written.
        """
        values = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        line = memoryview(json.dumps({"step": step, **values}).encode() + b"\n")
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise LogError(f"{self.path}: cannot be written ({error.strerror}); check the disk space") from error

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


class TensorBoardLog:
    """Event files for TensorBoard, one scalar per figure.

    Args:
      folder: Folder of the event files.
      resumed_step: Updates done before. TensorBoard hides later points of an earlier run.

    Raises:
      MissingExtraError: tensorboardX is not installed.
    """

    def __init__(self, folder: Path, *, resumed_step: int = 0):
        try:
            # Imported here because it is an optional extra.
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("TensorBoard logs need tensorboardX: pip install 'ryzjax[train]'") from error
        self._writer = SummaryWriter(str(folder), purge_step=resumed_step + 1 if resumed_step else None)

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point of each figure."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is buffered and closes the files."""
        self._writer.close()


class WandbLog:
    """A Weights & Biases run in the user's own account.

    Args:
      project: Name of the project.
      name: Name of the run. A run of this name in the same folder is resumed.
      folder: Folder of its local files.
      config: Settings of the run, shown beside it.

    Raises:
      MissingExtraError: wandb is not installed.
    """

    def __init__(self, project: str, *, name: str, folder: Path, config: Mapping[str, object]):
        try:
            # Imported here because only runs that ask for it need it.
            import wandb  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise MissingExtraError("logging to Weights & Biases needs its package: pip install wandb") from error
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=project, name=name, id=name, dir=str(folder), config=dict(config), resume="allow"
        )

    def log(self, step: int, figures: Mapping[str, float]) -> None:
        """Adds a point of each figure."""
        self._run.log(dict(figures), step=step)

    def close(self) -> None:
        """Ends the run."""
        self._run.finish()


def read_log(path: Path) -> list[dict[str, float | None]]:
    """Returns the lines of a JSONL log.

    Raises:
      DataError: The file cannot be read, or a line is not one that `JsonlLog` writes.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); expected the log of a run") from error
    found: list[dict[str, float | None]] = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{path}:{number}: not JSON ({error.msg}); remove the line") from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise DataError(f"{path}:{number}: no step; expected an object like {{'step': 10, 'loss': 1.5}}")
        found.append(row)
    return found


def _lines_to_keep(path: Path, step: int) -> bytes:
    if not path.exists():
        return b""
    kept = []
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            row = json.loads(line)
        except ValueError:
            # A kill cut the last line short, or the disk damaged a line, whose step is then unknown.
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int) and row["step"] <= step and line.endswith(b"\n"):
            kept.append(line)
    return b"".join(kept)
