"""What one rendering of a chat template may take, and how much of it has been taken."""

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
    """How much one rendering may take.

    Attributes:
      time_s: wall time.
      max_chars: of the output, and of any string (or list) on the way there.
      max_loop_passes: over all loops together.
    """

    time_s: float = 2.0
    max_chars: int = 8_000_000
    max_loop_passes: int = 1_000_000


@dataclass(kw_only=True)
class Budget:
    """What one rendering has used up, against its limits; starts the clock when made."""

    limits: TemplateLimits
    marks: tuple[str, str] = ("", "")
    """What stands in the text where a {% generation %} block begins and ends."""
    loop_passes: int = 0
    deadline_s: float = field(init=False)

    def __post_init__(self) -> None:
        self.deadline_s = time.monotonic() + self.limits.time_s

    def check_time(self) -> None:
        """Raises SecurityError past the deadline."""
        if time.monotonic() > self.deadline_s:
            raise SecurityError(f"it ran longer than {self.limits.time_s:g} s")

    def check_size(self, size: int) -> None:
        """Raises SecurityError for a value of more than `max_chars` characters."""
        if size > self.limits.max_chars:
            raise SecurityError(f"it built a value of {size} characters; at most {self.limits.max_chars} are allowed")


_current: ContextVar[Budget] = ContextVar("_current")


def current_budget() -> Budget:
    """The budget of the rendering that runs in this context; LookupError outside of one."""
    return _current.get()


@contextmanager
def metered(limits: TemplateLimits, marks: tuple[str, str] = ("", "")) -> Iterator[Budget]:
    """Gives what runs inside a fresh budget."""
    token = _current.set(Budget(limits=limits, marks=marks))
    try:
        yield _current.get()
    finally:
        _current.reset(token)
