"""The HTTP server over an `EngineFrontend`.

`openai/` holds the API, `guard/` what protects the server from its clients. The files in this folder serve every API:
the application and its settings, and the way from a request to the engine and back.
"""

from __future__ import annotations

from ryzjax.serving.frontend.protocol import EngineFrontend
from ryzjax.serving.http.app import create_app
from ryzjax.serving.http.config import HttpConfig
from ryzjax.serving.http.server import HttpServer

__all__ = ["EngineFrontend", "HttpConfig", "HttpServer", "create_app"]
