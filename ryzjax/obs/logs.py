"""Structured logs: one line for each event, for people or as JSON, with fields passed through `extra=`.

    logger = logging.getLogger(__name__)
    logger.info("request finished", extra={"request_id": "cmpl-1", "tokens": 16})

Only the `ryzjax` logger is configured. The root logger belongs to the program that uses the library.
"""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

from ryzjax.errors import ConfigError

__all__ = ["JsonFormatter", "LogFormat", "PlainFormatter", "setup_logging"]

LogFormat = Literal["plain", "json"]

_LEVELS = ("debug", "info", "warning", "error")
# The fields of every record. All others were passed through `extra=`.
_RECORD_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _extra_fields(record: logging.LogRecord) -> dict[str, object]:
    return {name: value for name, value in vars(record).items() if name not in _RECORD_FIELDS}


def _timestamp(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, then the extra fields."""

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, object] = {
            "time": _timestamp(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        event |= _extra_fields(record)
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, default=str)


class PlainFormatter(logging.Formatter):
    """`time level logger: message key=value ...`; strings are quoted so that an event stays on its line."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "".join(f" {name}={json.dumps(value, default=str)}" for name, value in _extra_fields(record).items())
        message = record.getMessage().replace("\n", "\\n")
        line = f"{_timestamp(record)} {record.levelname.lower()} {record.name}: {message}{fields}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def setup_logging(
    level: str = "info", *, log_format: LogFormat = "plain", stream: TextIO | None = None
) -> logging.Logger:
    """Sends the `ryzjax` logger's events to `stream` (standard error by default). Another call replaces the set-up.

    Args:
      level: "debug", "info", "warning" or "error".
      log_format: "plain" for people, "json" for machines.
      stream: the stream to write to.

    Raises:
      ConfigError: the level or the format is unknown.
    """
    if level not in _LEVELS:
        raise ConfigError(f"log_level={level!r} is unknown; expected one of {', '.join(_LEVELS)}")
    if log_format not in ("plain", "json"):
        raise ConfigError(f"log_format={log_format!r} is unknown; expected plain or json")
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if log_format == "json" else PlainFormatter())
    logger = logging.getLogger("ryzjax")
    logger.handlers = [handler]
    logger.setLevel(level.upper())
    logger.propagate = False
    return logger
