"""HttpConfig: how the HTTP server listens and what it accepts. Command-line flags derive from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ryzjax.errors import ConfigError

__all__ = ["HttpConfig"]


@dataclass(frozen=True, kw_only=True)
class HttpConfig:
    """How the HTTP server listens and what it accepts."""

    host: str = "127.0.0.1"
    """Address to listen on. The default takes local connections only; set `api_key` before you open it."""
    port: int = 8000
    """Port to listen on; 0 picks a free one."""
    served_model_name: str | None = None
    """Name clients must give as `model`; the engine's model name by default."""
    api_key: str | None = field(default=None, repr=False)
    """Demands `Authorization: Bearer <key>` on every route but /health and /ready; None demands nothing."""
    max_body_bytes: int = 8 * 1024 * 1024
    """Largest request body; a larger one is refused (413) while it is being read."""
    max_prompts_per_request: int = 64
    """Most prompts in one /v1/completions request, and most inputs of one /v1/embeddings request run at once."""
    max_inputs_per_request: int = 2048
    """Most inputs in one /v1/embeddings request."""
    max_sequences_per_request: int = 256
    """Most sequences (prompts x n) one request may start."""
    allow_lora_updating: bool = False
    """Let clients load and unload adapters (/v1/load_lora_adapter). Whoever may do so has the server read folders and
    files of theirs: set `api_key` as well."""
    max_adapter_bytes: int = 512 * 1024 * 1024
    """Largest body that brings an adapter's files (base64 makes them a third larger)."""
    drain_timeout_s: float = 30.0
    """On SIGTERM or SIGINT, how long running requests may go on before the server exits."""
    retry_after_s: int = 5
    """`Retry-After` of a 503 while the server starts or drains, in seconds."""
    access_log: bool = True
    """Log one line a request."""

    def __post_init__(self) -> None:
        _check("port", self.port, 0, 65535)
        _check("max_body_bytes", self.max_body_bytes, 1, 2**40)
        _check("max_adapter_bytes", self.max_adapter_bytes, 1, 2**40)
        _check("max_prompts_per_request", self.max_prompts_per_request, 1, 2**16)
        _check("max_inputs_per_request", self.max_inputs_per_request, 1, 2**16)
        _check("max_sequences_per_request", self.max_sequences_per_request, 1, 2**16)
        _check("drain_timeout_s", self.drain_timeout_s, 0, 86_400)
        _check("retry_after_s", self.retry_after_s, 0, 86_400)
        if self.api_key is not None and (not self.api_key or not self.api_key.isascii()):
            raise ConfigError("api_key is empty or not ASCII; give a non-empty ASCII key, or leave it out for no check")
        if self.served_model_name == "":
            raise ConfigError("served_model_name is empty; give a name, or leave it out for the engine's")


def _check(name: str, value: float, low: int, high: int) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is out of range; expected {low} to {high}")
