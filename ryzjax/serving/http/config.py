"""HttpConfig: where the HTTP server listens and which requests it accepts. Command-line flags derive from it."""

from __future__ import annotations

from dataclasses import dataclass, field

from ryzjax.errors import ConfigError
from ryzjax.serving.messages.sampling_params import MAX_LOGIT_BIAS, MAX_STOP_CHARS, MAX_STOPS

__all__ = ["HttpConfig"]


@dataclass(frozen=True, kw_only=True)
class HttpConfig:
    """Where the HTTP server listens and which requests it accepts."""

    host: str = "127.0.0.1"
    """Address to listen on. The default accepts only connections from this machine; set api_key before you listen on
    others."""
    port: int = 8000
    """Port to listen on. 0 picks a free port."""
    served_model_name: str | None = None
    """Name that clients must give as `model`. By default the name of the model's directory or repository."""
    api_key: str | None = field(default=None, repr=False)
    """Key that clients must send as `Authorization: Bearer <key>` on every route but /health and /ready. By default
    the value of the environment variable RYZJAX_API_KEY if it is set, else no key is required. Prefer the variable,
    because `ps` shows flags."""
    max_body_bytes: int = 8 * 1024 * 1024
    """Largest request body, in bytes. A larger body is refused with 413."""
    max_buffered_bytes: int = 32 * 1024 * 1024
    """Memory that all request bodies share while they are read and parsed, in bytes. Bodies of at most 64 KiB do not
    count."""
    max_connections: int = 1024
    """Largest number of open connections. At the limit, a new connection replaces the one that has been idle longest.
    If no connection is idle, the new one is refused with 503."""
    header_timeout_s: float = 10.0
    """Time a client has to send the headers of a request, in seconds (408 after it)."""
    body_timeout_s: float = 10.0
    """Time a client has to send a body, in seconds, plus one second for each min_body_bytes_per_s bytes received (408
    after it)."""
    min_body_bytes_per_s: int = 64 * 1024
    """Slowest rate at which a body may arrive after body_timeout_s, in bytes per second. A slower one is refused with
    408."""
    send_timeout_s: float = 30.0
    """Time after which a client that does not read its answer is disconnected, in seconds."""
    keep_alive_timeout_s: float = 15.0
    """Time an idle connection stays open for the next request, in seconds."""
    max_prompts_per_request: int = 64
    """Largest number of prompts in one /v1/completions request, and of inputs of one /v1/embeddings request that run
    at the same time."""
    max_inputs_per_request: int = 2048
    """Largest number of inputs in one /v1/embeddings request."""
    max_messages_per_request: int = 1024
    """Largest number of messages in one chat request."""
    max_stop_strings: int = 16
    """Largest number of stop strings in one request."""
    max_stop_chars: int = 256
    """Length of the longest stop string, in characters."""
    max_logit_bias: int = 1024
    """Largest number of tokens in the logit_bias of one request."""
    max_logprobs_per_request: int = 4 * 1024 * 1024
    """Largest number of log-probabilities, alternatives included, that one answer may hold in memory, at about 100
    bytes each. The completions of a streamed answer do not count."""
    max_sequences_per_request: int | None = None
    """Largest number of sequences (prompts times n) that one request may start, and of its inputs that are embedded at
    the same time. By default a quarter of max_sequences plus max_queue, which leaves room for other clients."""
    allow_lora_updating: bool = False
    """Allow clients to load and unload adapters (/v1/load_lora_adapter and others). Such a client can make the server
    read any of its directories, so set api_key as well."""
    max_adapter_bytes: int = 512 * 1024 * 1024
    """Largest request body that uploads an adapter, in bytes. Base64 makes the files a third larger."""
    drain_timeout_s: float = 30.0
    """Time that running requests have to finish after SIGTERM or SIGINT, in seconds."""
    retry_after_s: int = 5
    """The Retry-After header of a 503 while the server starts or drains, in seconds."""
    access_log: bool = True
    """Write one log line for each request."""

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
            raise ConfigError("served_model_name is empty; give a name, or leave it out to use the model's name")


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name}={value} is out of range; expected {low} to {high}")
