"""FinishRate: estimates how soon a place in the queue is free."""

from __future__ import annotations

import math
from collections import deque

__all__ = ["FinishRate"]

_WINDOW = 32
_MAX_RETRY_S = 60


class FinishRate:
    """Remembers when sequences finished. Each finished sequence lets one waiting request leave the queue."""

    def __init__(self) -> None:
        self._times: deque[float] = deque(maxlen=_WINDOW)

    def record(self, now_s: float) -> None:
        """Records that a sequence finished at `now_s`, in monotonic seconds."""
        self._times.append(now_s)

    def retry_after_s(self) -> int:
        """Returns the mean time between recent finishes as whole seconds from 1 to 60, or 1 if too few are known."""
        if len(self._times) < 2:
            return 1
        mean = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return min(max(math.ceil(mean), 1), _MAX_RETRY_S)
