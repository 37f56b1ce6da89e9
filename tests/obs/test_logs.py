from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from ryzjax.errors import ConfigError
from ryzjax.obs.logs import setup_logging


@pytest.fixture(autouse=True)
def restore_logger() -> Iterator[None]:
    logger = logging.getLogger("ryzjax")
    before = (logger.handlers, logger.level, logger.propagate)
    yield
    logger.handlers, logger.level, logger.propagate = before


def test_json_lines_carry_fields_and_exceptions() -> None:
    stream = io.StringIO()
    setup_logging("info", log_format="json", stream=stream)
    logger = logging.getLogger("ryzjax.test")
    logger.debug("hidden")
    logger.info("hello %s", "there", extra={"request_id": "r1", "tokens": 3})
    try:
        raise ValueError("boom")
    except ValueError:
        logger.exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["message"], first["level"], first["logger"]) == ("hello there", "info", "ryzjax.test")
    assert (first["request_id"], first["tokens"]) == ("r1", 3)
    assert "ValueError: boom" in second["exception"]


def test_plain_lines_cannot_be_forged_by_a_newline() -> None:
    stream = io.StringIO()
    setup_logging("info", stream=stream)
    logging.getLogger("ryzjax.test").info("a\nb", extra={"path": "/x\n/y"})
    (line,) = stream.getvalue().splitlines()
    assert line.endswith('info ryzjax.test: a\\nb path="/x\\n/y"')


def test_setting_up_twice_writes_once() -> None:
    stream = io.StringIO()
    setup_logging(stream=stream)
    setup_logging(stream=stream)
    logging.getLogger("ryzjax").info("once")
    assert len(stream.getvalue().splitlines()) == 1


def test_unknown_level_and_format() -> None:
    with pytest.raises(ConfigError, match="log_level='loud'"):
        setup_logging("loud")
    with pytest.raises(ConfigError, match="log_format='xml'"):
        setup_logging(log_format="xml")  # type: ignore[arg-type]
