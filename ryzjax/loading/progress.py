"""A progress bar with bytes and time left, on stderr, or nothing at all."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["byte_progress"]


@contextmanager
def byte_progress(description: str, total_bytes: int, *, show: bool) -> Iterator[Callable[[int], None]]:
    """Yields a function that takes the bytes done since the last call."""
    if not show:
        yield lambda done_bytes: None
        return
    # Imported here: a quiet start does not pay for it.
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task(description, total=total_bytes)
        yield lambda done_bytes: progress.update(task, advance=done_bytes)
