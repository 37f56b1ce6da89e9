"""Orbax's errors: which exceptions mean a failed read or write, and their reason in one line."""

from __future__ import annotations

import logging

__all__ = ["ORBAX_FAILURES", "failure_reason", "hide_orbax_tracebacks"]

_log = logging.getLogger(__name__)

ORBAX_FAILURES = (OSError, ValueError, KeyError, TypeError, RuntimeError)
"""What Orbax and tensorstore raise for a full disk, missing permissions and damaged files."""


class _TracebackFilter(logging.Filter):
    """Drops the tracebacks that Orbax logs from its threads; `RunCheckpoints` raises those failures itself."""

    def filter(self, record: logging.LogRecord) -> bool:
        if record.exc_info and "orbax" in record.pathname:
            _log.debug("%s", record.getMessage(), exc_info=record.exc_info)
            return False
        return True


_traceback_filter = _TracebackFilter()


def hide_orbax_tracebacks() -> None:
    """Keeps tracebacks of failed saves, which Orbax logs in its threads, out of the user's sight."""
    logging.getLogger("absl").addFilter(_traceback_filter)


def failure_reason(error: BaseException) -> str:
    """Returns the first line of the error at the bottom of a chain of errors."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    text = (error.strerror if isinstance(error, OSError) else None) or str(error)
    # Tensorstore: "what it did: in which file: No space left on device [os_error_code='28'] [more]".
    text = text.split(" [os_error_code")[0].rsplit(": ", 1)[-1] if "os_error_code" in text else text
    return text.strip().split("\n")[0][:300] or type(error).__name__
