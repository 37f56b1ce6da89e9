"""Limits on the time and memory of rendering a chat template, and the budget that is left."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

from jinja2.exceptions import SecurityError

__all__ = ["Budget", "TemplateLimits", "current_budget", "metered"]


@dataclass(frozen=True, kw_only=True)
class TemplateLimits:
    """The limits of one rendering.

    Attributes:
      time_s: the longest wall time, in seconds.
      max_chars: the most characters of the output, and of any string or list built on the way.
      max_loop_passes: the most passes of all loops together.
    """

    time_s: float = 2.0
    max_chars: int = 8_000_000
    max_loop_passes: int = 1_000_000


@dataclass(kw_only=True)
class Budget:
    """What one rendering has used of its limits. The clock starts when the budget is created."""

    limits: TemplateLimits
    marks: tuple[str, str] = ("", "")
    """The texts written at the start and at the end of a {% generation %} block."""
    loop_passes: int = 0
    deadline_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline_s = time.monotonic() + self.limits.time_s

    def check_time(self) -> None:
        """Raises SecurityError if the deadline has passed."""
        if time.monotonic() > self.deadline_s:
            raise SecurityError(f"it ran longer than {self.limits.time_s:g} s")

    def check_size(self, size: int) -> None:
        """Raises SecurityError if a value has more than `max_chars` characters."""
        if size > self.limits.max_chars:
            raise SecurityError(f"it built a value of {size} characters; at most {self.limits.max_chars} are allowed")


_current: ContextVar[Budget] = ContextVar("_current")


def current_budget() -> Budget:
    """Returns the budget of the rendering that runs in this context. Raises LookupError outside a rendering."""
    return _current.get()


@contextmanager
def metered(limits: TemplateLimits, marks: tuple[str, str] = ("", "")) -> Iterator[Budget]:
    """Runs a rendering inside a new budget."""
    token = _current.set(Budget(limits=limits, marks=marks))
    try:
        yield _current.get()
    finally:
        _current.reset(token)
