"""The OpenAI-compatible HTTP server over an `EngineFrontend`."""

from __future__ import annotations

from ryzjax.serving.frontend.protocol import EngineFrontend
from ryzjax.serving.http.app import create_app
from ryzjax.serving.http.config import HttpConfig
from ryzjax.serving.http.server import HttpServer

__all__ = ["EngineFrontend", "HttpConfig", "HttpServer", "create_app"]
