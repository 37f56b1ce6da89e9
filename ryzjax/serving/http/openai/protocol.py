"""The request bodies of /v1/completions and /v1/chat/completions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from ryzjax.errors import RequestError
from ryzjax.serving.frontend.sampling_defaults import SamplingDefaults
from ryzjax.serving.http.openai.extra_fields import check_extra_fields
from ryzjax.serving.http.openai.fields import GenerationRequest, Integer, Prompts, prompt_list
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["ChatCompletionRequest", "ChatMessage", "CompletionRequest", "ContentPart"]


class CompletionRequest(GenerationRequest):
    """Body of /v1/completions.

    `logprobs` is the number of alternatives to report with each token. `max_tokens` is 16 by default. `echo` repeats
    the prompt before the completion, with log-probabilities if they are requested; `max_tokens` may then be 0.
    """

    prompt: Prompts
    logprobs: Integer | None = None
    echo: bool | None = None
    add_special_tokens: bool | None = None

    def prompts(self) -> list[str | list[int]]:
        """Returns the prompts, one or more. Raises RequestError if there is none."""
        return prompt_list(self.prompt, "prompt")

    def sampling_params(self, defaults: SamplingDefaults) -> SamplingParams:
        """Returns the sampling settings, with `defaults` for those that the request does not name.

        Raises:
          RequestError: A value is out of range.
        """
        max_tokens = 16 if self.max_tokens is None else self.max_tokens
        prompt_logprobs = self.logprobs if self.echo else None
        if self.echo and max_tokens == 0 and prompt_logprobs is None:
            prompt_logprobs = (
                0  # not part of the answer: SamplingParams allows max_tokens=0 only with prompt log-probabilities
            )
        return self._sampling_params(
            defaults, max_tokens=max_tokens, logprobs=self.logprobs, prompt_logprobs=prompt_logprobs
        )


class ContentPart(BaseModel):
    """One part of a message's content. Only text is supported."""

    model_config = ConfigDict(strict=True, extra="allow")

    type: str
    text: str | None = None


class ChatMessage(BaseModel):
    """One message of a conversation. Only an assistant's `content` may be null, which counts as empty."""

    model_config = ConfigDict(strict=True, extra="allow")

    role: str
    content: str | Annotated[list[ContentPart], Field(fail_fast=True)] | None = None
    name: str | None = None

    def as_template_input(self, where: str) -> dict[str, str]:
        """Returns the message as chat templates expect it, with the text parts of its content joined by newlines."""
        if self.role not in _ROLES:
            raise RequestError(
                f"{where}role={self.role[:80]!r} is not supported; expected one of {', '.join(_ROLES)}",
                param=f"{where}role",
            )
        for field, value in (self.model_extra or {}).items():
            # Clients send an assistant's message back as they received it, with its empty fields.
            if value is not None and value != []:
                if field in _UNSUPPORTED_MESSAGE_FIELDS:
                    raise RequestError(
                        f"{where}{field} is not supported by this server; leave it out",
                        param=f"{where}{field}",
                        code="unsupported_parameter",
                    )
                check_extra_fields({field: value}, where=where)
        message = {"role": self.role, "content": self._text(where)}
        if self.name is not None:
            message["name"] = self.name
        return message

    def _text(self, where: str) -> str:
        if self.content is None:
            if self.role != "assistant":
                raise RequestError(
                    f"{where}content is missing; a message of role {self.role!r} needs it", param=f"{where}content"
                )
            return ""
        if isinstance(self.content, str):
            return self.content
        texts = []
        for number, part in enumerate(self.content):
            if part.type != "text" or part.text is None:
                raise RequestError(
                    f"{where}content.{number} is of type {part.type[:80]!r}; only parts of type 'text' with a `text` "
                    "are supported",
                    param=f"{where}content",
                )
            check_extra_fields(part.model_extra or {}, where=f"{where}content.{number}.")
            texts.append(part.text)
        return "\n".join(texts)


_ROLES = ("system", "developer", "user", "assistant")
_UNSUPPORTED_MESSAGE_FIELDS = frozenset(
    {"annotations", "audio", "function_call", "reasoning", "reasoning_content", "refusal", "tool_call_id", "tool_calls"}
)


class ChatCompletionRequest(GenerationRequest):
    """Body of /v1/chat/completions.

    Without `max_completion_tokens`, or its old name `max_tokens`, a completion may fill the context.
    """

    messages: Annotated[list[ChatMessage], Field(fail_fast=True)]
    max_completion_tokens: Integer | None = None
    logprobs: bool | None = None
    top_logprobs: Integer | None = None
    add_generation_prompt: bool | None = None

    def template_messages(self) -> list[dict[str, str]]:
        """Returns the conversation for a chat template. Raises RequestError if it is empty or has anything but text."""
        if not self.messages:
            raise RequestError("messages is an empty list; give at least one message", param="messages")
        return [message.as_template_input(f"messages.{number}.") for number, message in enumerate(self.messages)]

    def sampling_params(self, defaults: SamplingDefaults) -> SamplingParams:
        """Returns the sampling settings, with `defaults` for those that the request does not name.

        Raises:
          RequestError: A value is out of range, or two values contradict each other.
        """
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise RequestError(
                "max_tokens and max_completion_tokens differ; give one of them", param="max_completion_tokens"
            )
        max_tokens = self.max_tokens if self.max_completion_tokens is None else self.max_completion_tokens
        if self.top_logprobs is not None and not self.logprobs:
            raise RequestError("top_logprobs is only taken with logprobs=true; set it", param="top_logprobs")
        logprobs = (self.top_logprobs or 0) if self.logprobs else None
        try:
            return self._sampling_params(defaults, max_tokens=max_tokens, logprobs=logprobs)
        except RequestError as error:
            names = {"logprobs": "top_logprobs"}
            if self.max_completion_tokens is not None:
                names["max_tokens"] = "max_completion_tokens"
            raise _renamed(error, names) from error


def _renamed(error: RequestError, names: Mapping[str, str]) -> RequestError:
    """Returns the error with the names of SamplingParams' fields replaced by those of the request."""
    message = re.sub(rf"\b({'|'.join(names)})\b", lambda found: names[found[0]], str(error))
    return RequestError(message, param=names.get(error.param or "", error.param), code=error.code)
