"""Every exception RyzJAX raises on bad input.

    RyzJAXError
    ├── ConfigError             an option or config value is wrong
    │   ├── UnsupportedModelError   the architecture, or a field that changes its maths, is not supported
    │   └── LayoutError             a sharding layout does not fit the mesh or the model
    ├── CheckpointError         a checkpoint file is missing, truncated or of the wrong shape
    ├── DataError               data to train or evaluate on is missing, malformed or too short
    │   └── UntrainedRowError       a row is well-formed and has nothing to train on
    ├── TrainingError           a run cannot go on: its loss is not a number
    ├── LogError                the log or the plot of a run cannot be written
    ├── MissingExtraError       an optional package is not installed
    ├── CapacityError           nothing fits the memory that was given
    ├── RequestError            one request is bad (HTTP 400); carries `param` and `code`
    │   └── ContextLengthError      prompt longer than the context (`context_length_exceeded`)
    ├── QueueFullError          too many requests waiting (HTTP 429); carries `retry_after_s`
    └── EngineStoppedError      the engine is draining or stopped (HTTP 503)
        └── EngineFailedError       the engine failed; says of what, which clients of a server are not told

A message names the thing, its value, what was expected, and the remedy.
"""

from __future__ import annotations

__all__ = [
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
    "QueueFullError",
    "RequestError",
    "RyzJAXError",
    "TrainingError",
    "UnsupportedModelError",
    "UntrainedRowError",
]


class RyzJAXError(Exception):
    """Base of every error RyzJAX raises on purpose."""


class ConfigError(RyzJAXError, ValueError):
    """An option or config value is wrong."""


class UnsupportedModelError(ConfigError):
    """The architecture, or a config field that changes its maths, is not supported."""


class LayoutError(ConfigError):
    """A sharding layout does not fit the mesh or the model."""


class CheckpointError(RyzJAXError):
    """A checkpoint file is missing, truncated, or does not match the model."""


class DataError(RyzJAXError, ValueError):
    """Data to train or evaluate on is missing, malformed or too short; the message names the file and the line."""


class UntrainedRowError(DataError):
    """A row is well-formed and has nothing to train on; `drop_untrained` leaves such rows out."""


class TrainingError(RyzJAXError):
    """A training run cannot go on: its loss is not a number."""


class LogError(RyzJAXError):
    """The log or the plot of a run cannot be written; the run itself is not at fault."""


class MissingExtraError(RyzJAXError, ImportError):
    """What was asked for needs a package of an optional extra; the message says which."""


class CapacityError(RyzJAXError):
    """Nothing fits the memory that was given."""


class RequestError(RyzJAXError, ValueError):
    """One request is bad; the engine and its neighbours are untouched.

    Args:
      message: what is wrong, with value, expectation and remedy.
      param: name of the offending request field, as the OpenAI API spells it.
      code: machine-readable code of the OpenAI error object.
    """

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(RequestError):
    """The prompt (plus what must be generated) does not fit the context."""

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
        """The error of a prompt, in OpenAI's words: clients such as litellm recognize it by them.

        Args:
          prompt_tokens: the prompt's length.
          max_context_tokens: the longest prompt and output together.
          new_tokens: fewest tokens that must be generated after the prompt.
          what: what is too long.
          remedy: what the caller can do.
          param: the request field.
        """
        more = f" and at least {new_tokens} must be generated" if new_tokens else ""
        return cls(
            f"This model's maximum context length is {max_context_tokens} tokens. However, {what} has {prompt_tokens} "
            f"tokens{more}; {remedy}",
            param=param,
        )


class QueueFullError(RyzJAXError):
    """The waiting queue is full; try again after `retry_after_s` seconds."""

    def __init__(self, message: str, *, retry_after_s: int):
        super().__init__(message)
        self.retry_after_s = retry_after_s


class EngineStoppedError(RyzJAXError):
    """The engine is draining, stopped or failed and takes no request."""


class EngineFailedError(EngineStoppedError):
    """The engine's thread has failed; the message has the cause, for the log and for callers in this process."""
