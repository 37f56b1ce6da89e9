"""RequestLimits: the largest sizes of the parts of a request. Each is checked before any work on that part."""

from __future__ import annotations

from dataclasses import dataclass

from ryzjax.errors import ContextLengthError, RequestError
from ryzjax.serving.http.config import HttpConfig
from ryzjax.serving.http.guard.json_body import CONTAINER_COST

__all__ = ["RequestLimits"]

_MAX_FIELDS = 256
"""Largest number of fields of an object, and of items of a list, without a limit of its own."""


@dataclass(frozen=True, kw_only=True)
class RequestLimits:
    """The largest sizes of the parts of one request.

    Attributes:
      config: The limits that the operator sets.
      max_context_tokens: The largest number of tokens of one prompt and its output together.
      max_prompt_chars: The largest number of characters of one prompt. A longer text cannot fit the context.
    """

    config: HttpConfig
    max_context_tokens: int
    max_prompt_chars: int

    @property
    def max_cost(self) -> int:
        """The largest cost of a body, as `parse_object` counts it."""
        config = self.config
        tokens = config.max_prompts_per_request * self.max_context_tokens
        # A prompt or an input may be a list. A message is an object with a few keys, and its content may have parts.
        containers = 1024 + max(config.max_prompts_per_request, config.max_inputs_per_request)
        containers += 8 * config.max_messages_per_request
        return tokens + CONTAINER_COST * containers

    def check_sizes(self, body: dict[str, object]) -> None:
        """Refuses lists and objects that are too long. Only their lengths are read.

        Raises:
          RequestError: A list or an object is too long. The message names the field, its size and the limit.
          ContextLengthError: A list of token ids is longer than the context.
        """
        _check_items("the body", body, _MAX_FIELDS, param=None)
        config = self.config
        own = {
            "messages": (config.max_messages_per_request, "max_messages_per_request"),
            "stop": (config.max_stop_strings, "max_stop_strings"),
            "logit_bias": (config.max_logit_bias, "max_logit_bias"),
        }
        for name, value in body.items():
            if not isinstance(value, (list, dict)):
                continue
            if name in ("prompt", "input"):
                self._check_prompts(name, value)
            elif name in own:
                limit, setting = own[name]
                _check_items(name, value, limit, param=name, setting=setting)
            else:
                _check_items(name[:100], value, _MAX_FIELDS, param=name[:100])
        self._check_messages(body.get("messages"))
        self._check_stops(body.get("stop"))

    def check_text(self, name: str, num_chars: int, *, param: str) -> None:
        """Refuses a text that cannot fit the context, before it is tokenized.

        Raises:
          ContextLengthError: The text is too long.
        """
        if num_chars > self.max_prompt_chars:
            raise ContextLengthError(
                f"This model's maximum context length is {self.max_context_tokens} tokens. However, {name} has "
                f"{num_chars} characters, and at most {self.max_prompt_chars} can fit; shorten it",
                param=param,
            )

    def check_logprobs(self, count: int) -> None:
        """Raises RequestError if an answer would have too many log-probabilities."""
        limit = self.config.max_logprobs_per_request
        if count > limit:
            raise RequestError(
                f"the answer may have {count} log-probabilities; at most {limit} are taken in one request "
                "(max_logprobs_per_request); lower logprobs, max_tokens or n, or stream the answer",
                param="logprobs",
            )

    def _check_prompts(self, name: str, prompts: list[object] | dict[str, object]) -> None:
        if isinstance(prompts, list) and prompts and isinstance(prompts[0], (str, list)):
            is_input = name == "input"
            setting = "max_inputs_per_request" if is_input else "max_prompts_per_request"
            _check_items(name, prompts, getattr(self.config, setting), param=name, setting=setting, what=f"{name}s")
            for number, prompt in enumerate(prompts):
                if isinstance(prompt, list):
                    self._check_tokens(f"{name} {number}", prompt, name)
        elif isinstance(prompts, list):
            self._check_tokens(name, prompts, name)
        else:
            _check_items(name, prompts, _MAX_FIELDS, param=name)

    def _check_tokens(self, name: str, tokens: list[object], param: str) -> None:
        if len(tokens) > self.max_context_tokens:
            raise ContextLengthError.of_prompt(len(tokens), self.max_context_tokens, what=name, param=param)

    def _check_messages(self, messages: object) -> None:
        for number, message in enumerate(messages if isinstance(messages, list) else ()):
            if isinstance(message, (dict, list)):
                _check_items(f"messages.{number}", message, _MAX_FIELDS, param=f"messages.{number}")
            content = message.get("content") if isinstance(message, dict) else None
            if isinstance(content, (list, dict)):
                where = f"messages.{number}.content"
                _check_items(where, content, _MAX_FIELDS, param=where)
                for part in content if isinstance(content, list) else ():
                    if isinstance(part, (dict, list)):
                        _check_items(f"a part of {where}", part, _MAX_FIELDS, param=where)

    def _check_stops(self, stop: object) -> None:
        limit = self.config.max_stop_chars
        for one in stop if isinstance(stop, list) else (stop,):
            if isinstance(one, str) and len(one) > limit:
                raise RequestError(
                    f"stop contains a string of {len(one)} characters; at most {limit} are taken (max_stop_chars)",
                    param="stop",
                )


def _check_items(
    name: str,
    value: list[object] | dict[str, object],
    limit: int,
    *,
    param: str | None,
    setting: str | None = None,
    what: str | None = None,
) -> None:
    if len(value) > limit:
        what = what or ("fields" if isinstance(value, dict) else "items")
        named = f" ({setting})" if setting else ""
        raise RequestError(
            f"{name} has {len(value)} {what}; at most {limit} are taken in one request{named}", param=param
        )
