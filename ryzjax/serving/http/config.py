"""HttpConfig: how the HTTP server listens and what it accepts. Command-line flags derive from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ryzjax.errors import ConfigError
from ryzjax.serving.messages.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_CHARS, MAX_STOPS

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
    """Demands `Authorization: Bearer <key>` on every route but /health and /ready; None demands nothing. The
    commands read the environment variable RYZJAX_API_KEY where the flag is not given: prefer it, as ps shows flags."""
    max_body_bytes: int = 8 * 1024 * 1024
    """Largest request body; a larger one is refused (413) while it is being read."""
    max_buffered_bytes: int = 32 * 1024 * 1024
    """Memory for the bodies of all requests that are being read or parsed. Bodies of at most 64 KiB do not count."""
    max_connections: int = 1024
    """Most open connections. At the limit, a new connection takes the place of the one that has been idle longest; it
    is refused (503) where every connection is answering a request."""
    header_timeout_s: float = 10.0
    """How long a client may take to send the headers of a request, in seconds."""
    body_timeout_s: float = 10.0
    """How long a client may take to send a body, in seconds, beside a second for every `min_body_bytes_per_s`."""
    min_body_bytes_per_s: int = 64 * 1024
    """Slowest rate at which a large body may arrive, after `body_timeout_s`; a slower request is refused (408)."""
    send_timeout_s: float = 30.0
    """How long a client may leave an answer unread before its connection is cut, in seconds."""
    keep_alive_timeout_s: float = 15.0
    """How long an idle connection stays open for the next request, in seconds."""
    max_prompts_per_request: int = 64
    """Most prompts in one /v1/completions request, and most inputs of one /v1/embeddings request run at once."""
    max_inputs_per_request: int = 2048
    """Most inputs in one /v1/embeddings request."""
    max_messages_per_request: int = 1024
    """Most messages of one conversation."""
    max_stop_strings: int = 16
    """Most stop strings of one request."""
    max_stop_chars: int = 256
    """Longest stop string, in characters."""
    max_logit_bias: int = 1024
    """Most tokens that one request may bias."""
    max_logprobs_per_request: int = 4 * 1024 * 1024
    """Most log-probabilities, alternatives included, that one answer may hold in memory: about 100 bytes each. The
    completions of a streamed answer do not count."""
    max_sequences_per_request: int | None = None
    """Most sequences (prompts x n) that one request may start, and most of its inputs that are embedded at once; by
    default a quarter of max_sequences + max_queue, so that other clients get in beside it."""
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
        _check("max_buffered_bytes", self.max_buffered_bytes, self.max_body_bytes, 2**40)
        _check("max_connections", self.max_connections, 1, 2**20)
        _check("header_timeout_s", self.header_timeout_s, 0.01, 86_400)
        _check("body_timeout_s", self.body_timeout_s, 0.01, 86_400)
        _check("min_body_bytes_per_s", self.min_body_bytes_per_s, 1, 2**40)
        _check("send_timeout_s", self.send_timeout_s, 0.01, 86_400)
        _check("keep_alive_timeout_s", self.keep_alive_timeout_s, 0.01, 86_400)
        _check("max_prompts_per_request", self.max_prompts_per_request, 1, 2**16)
        _check("max_inputs_per_request", self.max_inputs_per_request, 1, 2**16)
        _check("max_messages_per_request", self.max_messages_per_request, 1, 2**16)
        _check("max_stop_strings", self.max_stop_strings, 0, MAX_STOPS)
        _check("max_stop_chars", self.max_stop_chars, 1, MAX_STOP_CHARS)
        _check("max_logprobs_per_request", self.max_logprobs_per_request, 0, 2**40)
        _check("max_logit_bias", self.max_logit_bias, 0, MAX_LOGIT_BIAS)
        if self.max_sequences_per_request is not None:
            _check("max_sequences_per_request", self.max_sequences_per_request, 1, 2**16)
        _check("drain_timeout_s", self.drain_timeout_s, 0, 86_400)
        _check("retry_after_s", self.retry_after_s, 0, 86_400)
        if self.api_key is not None and not (self.api_key and self.api_key.isascii() and self.api_key.isprintable()):
            raise ConfigError(
                "api_key is empty, or has characters that are not printable ASCII (such as a line end); give a key of "
                "printable ASCII, or leave it out for no check"
            )
        if self.served_model_name == "":
            raise ConfigError("served_model_name is empty; give a name, or leave it out for the engine's")


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is out of range; expected {low} to {high}")
