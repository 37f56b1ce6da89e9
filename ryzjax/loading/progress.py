"""A progress bar on stderr that counts bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["byte_progress"]


@contextmanager
def byte_progress(description: str, total_bytes: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Shows a bar with bytes, speed and time left. Yields a function to call with the bytes done since its last call.

    Args:
      description: The text before the bar.
      total_bytes: Bytes at the end.
      show: False shows nothing.
    """
    if not show:
        yield lambda done_bytes: None
        return
    # Imported here so that a start without a bar does not pay for the import.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total_bytes)
        yield lambda done_bytes: progress.update(task, advance=done_bytes)
