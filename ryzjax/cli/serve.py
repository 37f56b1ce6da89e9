"""The command `ryzjax serve`."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field, replace
from typing import Literal

from ryzjax.api_key import api_key_or_environment
from ryzjax.cli.arguments import Section
from ryzjax.obs import setup_logging
from ryzjax.serving.http.config import HttpConfig
from ryzjax.serving.messages.config import EngineConfig

__all__ = ["Serve"]


@dataclass(frozen=True, kw_only=True)
class Serve:
    """Serve a model over an OpenAI-compatible HTTP endpoint."""

    engine: Section[EngineConfig]
    http: Section[HttpConfig] = field(default_factory=HttpConfig)
    config: str | None = None
    """TOML file with values for any of these flags, or the name of a file in configs/serve. Flags override the
    file."""
    log_format: Literal["plain", "json"] = "plain"
    """Format of the log: plain writes lines of text, json writes one JSON object on each line."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Lowest severity of the messages in the log."""

    def run(self) -> int:
        """Loads and compiles the model, serves until a signal, and returns the exit status."""
        started = time.perf_counter()
        setup_logging(level=self.log_level, log_format=self.log_format)
        http = replace(self.http, api_key=api_key_or_environment(self.http.api_key))
        # These modules import jax. They are imported late, so that invalid flags are reported at once.
        from ryzjax.serving.frontend.launch import launch_engine
        from ryzjax.serving.http.server import HttpServer

        log = logging.getLogger(__name__)
        log.info("phase import %.3f", time.perf_counter() - started)
        engine = launch_engine(self.engine, model_name=http.served_model_name)
        try:
            server = HttpServer(engine, http, metrics=engine.metrics)
            log.info("phase total %.3f", time.perf_counter() - started)
            log.info("serving %s on http://%s:%d", engine.model_name, server.host, server.port)
            return server.run()
        finally:
            engine.stop()
