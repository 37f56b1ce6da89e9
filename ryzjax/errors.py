"""The exceptions that callers of RyzJAX can catch.

    RyzJAXError
    ├── ConfigError             an option or a config value is wrong
    │   ├── UnsupportedModelError   the architecture, or a config field that changes its maths, is not supported
    │   └── LayoutError             a sharding layout does not fit the mesh or the model
    ├── CheckpointError         a checkpoint file is missing, damaged, or does not match the model
    ├── DataError               training or evaluation data is missing, malformed or too short
    │   └── UntrainedRowError       a row is well-formed but has no token to train on
    ├── TrainingError           a training run cannot continue because its loss or gradients are not finite
    ├── LogError                the log or the plot of a training run cannot be written
    ├── PublishError            a running server cannot be reached or refuses an adapter
    ├── MissingExtraError       an optional package is not installed
    ├── CapacityError           nothing fits the given memory
    ├── RequestError            one request is invalid (HTTP 400); has `param` and `code`
    │   ├── ContextLengthError      the prompt is longer than the context (`context_length_exceeded`)
    │   ├── ModelNotFoundError      the server does not serve the named model (HTTP 404)
    │   ├── AdapterNotFoundError    no adapter has this name (HTTP 404)
    │   └── AdapterConflictError    the adapter name is taken, or no more adapters are accepted (HTTP 409)
    ├── QueueFullError          too many requests are waiting (HTTP 429); has `retry_after_s`
    └── EngineStoppedError      the engine is draining or stopped (HTTP 503)
        └── EngineFailedError       the engine has failed; the message has the cause, which HTTP clients do not see

A message names the thing, its value, what was expected, and the remedy. The HTTP server has further exceptions of its
own, which do not derive from RyzJAXError because none of them leaves the server (`ryzjax.serving.http`).
"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = [
    "AdapterConflictError",
    "AdapterNotFoundError",
    "CapacityError",
    "CheckpointError",
    "ConfigError",
    "ContextLengthError",
    "DataError",
    "EngineFailedError",
    "EngineStoppedError",
    "LayoutError",
    "LogError",
    "MissingExtraError",
    "ModelNotFoundError",
    "PublishError",
    "QueueFullError",
    "RequestError",
    "RyzJAXError",
    "TrainingError",
    "UnsupportedModelError",
    "UntrainedRowError",
]

_MAX_NAME_CHARS = 200
_MAX_NAMED_MODELS = 10


class RyzJAXError(Exception):
    """Base class of all errors that RyzJAX raises on purpose."""


class ConfigError(RyzJAXError, ValueError):
    """An option or a config value is wrong."""


class UnsupportedModelError(ConfigError):
    """The architecture, or a config field that changes its maths, is not supported."""


class LayoutError(ConfigError):
    """A sharding layout does not fit the mesh or the model."""


class CheckpointError(RyzJAXError):
    """A checkpoint file is missing, damaged, or does not match the model."""


class DataError(RyzJAXError, ValueError):
    """Training or evaluation data is missing, malformed or too short. The message names the file and the line."""


class UntrainedRowError(DataError):
    """A row is well-formed but has no token to train on. The option `drop_untrained` skips such rows."""


class TrainingError(RyzJAXError):
    """A training run cannot continue because its loss or its gradients are not finite."""


class LogError(RyzJAXError):
    """The log or the plot of a training run cannot be written. The run itself is not at fault."""


class PublishError(RyzJAXError):
    """A running server cannot be reached or refuses an adapter. The adapter's folder is unchanged."""


class MissingExtraError(RyzJAXError, ImportError):
    """A package of an optional extra is not installed. The message names the extra."""


class CapacityError(RyzJAXError):
    """Nothing fits the given memory."""


class RequestError(RyzJAXError, ValueError):
    """One request is invalid. The engine and the other requests are not affected.

    Args:
      message: What is wrong, the value, what was expected, and the remedy.
      param: Name of the invalid request field, as the OpenAI API spells it.
      code: Machine-readable code of the OpenAI error object.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(RequestError):
    """The prompt, together with the tokens that must be generated, does not fit the context."""

    def __init__(self, message: str, *, param: str = "messages"):
        super().__init__(message, param=param, code="context_length_exceeded")

    @classmethod
    def of_prompt(
        cls,
        prompt_tokens: int,
        max_context_tokens: int,
        *,
        new_tokens: int = 0,
        what: str = "the prompt",
        remedy: str = "shorten it",
        param: str = "prompt",
    ) -> ContextLengthError:
        """Returns the error for a prompt that is too long, in OpenAI's words, by which clients such as litellm know it.

        Args:
          prompt_tokens: Length of the prompt, in tokens.
          max_context_tokens: The largest number of tokens of prompt and output together.
          new_tokens: The smallest number of tokens that must be generated after the prompt.
          what: What is too long, for the message.
          remedy: What the caller can do, for the message.
          param: The request field.
        """
        more = f" and at least {new_tokens} must be generated" if new_tokens else ""
        return cls(
            f"This model's maximum context length is {max_context_tokens} tokens. However, {what} has {prompt_tokens} "
            f"tokens{more}; {remedy}",
            param=param,
        )


class ModelNotFoundError(RequestError):
    """The request names a model that the server does not serve (HTTP 404).

    Args:
      model: The name in the request.
      served: The name of the server's model.
      adapters: The names of its adapters, of which the message lists the first ten.
    """

    def __init__(self, model: str, served: str, adapters: Sequence[str] = ()):
        use = ", ".join(map(repr, (served, *adapters[:_MAX_NAMED_MODELS])))
        hidden = len(adapters) - _MAX_NAMED_MODELS
        use += f" or {hidden} more (/v1/models)" if hidden > 0 else ""
        super().__init__(
            f"the model {model[:_MAX_NAME_CHARS]!r} is not served here; use {use}",
            param="model",
            code="model_not_found",
        )


class AdapterNotFoundError(RequestError):
    """No adapter has this name (HTTP 404)."""

    def __init__(self, name: str):
        super().__init__(
            f"the lora adapter {name[:_MAX_NAME_CHARS]!r} cannot be found; /v1/models lists the adapters",
            param="model",
            code="model_not_found",
        )


class AdapterConflictError(RequestError):
    """The adapter name is taken, or no more adapters are accepted (HTTP 409)."""


class QueueFullError(RyzJAXError):
    """The waiting queue is full. The request can be sent again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: int):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineStoppedError(RyzJAXError):
    """The engine is draining, stopped or failed, and accepts no requests."""


class EngineFailedError(EngineStoppedError):
    """The engine's thread has failed. The message has the cause, for the log and for callers in this process."""
