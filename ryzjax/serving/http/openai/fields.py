"""The request fields that several routes share, their validation, and the way from them to SamplingParams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from ryzjax.errors import RequestError
from ryzjax.serving.frontend.sampling_defaults import SamplingDefaults
from ryzjax.serving.http.guard.json_body import parse_object
from ryzjax.serving.http.guard.limits import RequestLimits
from ryzjax.serving.http.openai.extra_fields import check_extra_fields, shown_value
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = [
    "ApiRequest",
    "GenerationRequest",
    "Integer",
    "JsonBody",
    "Prompts",
    "StreamOptions",
    "prompt_list",
]


def _integral(value: object) -> object:
    # JSON has one kind of number, and some clients write 16 as 16.0. Above 2**53, a float is ambiguous.
    if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
        return int(value)
    return value


Integer = Annotated[int, BeforeValidator(_integral)]
"""A whole number, which a client may also write as 16.0."""
_Tokens = Annotated[list[int], Field(fail_fast=True)]
Prompts = str | Annotated[list[str], Field(fail_fast=True)] | _Tokens | Annotated[list[_Tokens], Field(fail_fast=True)]
"""One or several texts, or one or several lists of token ids. Validation stops at the first invalid item."""

# Request fields that become the fields of SamplingParams with the same name.
_SAMPLING_FIELDS = (
    "n",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
    "seed",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "skip_special_tokens",
    "include_stop_str_in_output",
)


class StreamOptions(BaseModel):
    """Options of a streamed answer. `include_obfuscation` is accepted and ignored."""

    model_config = ConfigDict(strict=True, extra="forbid")

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class JsonBody(BaseModel):
    """A JSON body. null stands for the default of a field. Undeclared fields must be harmless (`extra_fields`)."""

    model_config = ConfigDict(strict=True, extra="allow")

    @classmethod
    def parse(cls, content: bytes, limits: RequestLimits) -> Self:
        """Parses and validates a request body.

        Args:
          content: The JSON.
          limits: The sizes that are checked before the validation.

        Raises:
          RequestError: The JSON is invalid, or a field is invalid, too large, unsupported or unknown.
          ContextLengthError: There are more token ids than fit the context.
        """
        body = parse_object(content, max_cost=limits.max_cost)
        limits.check_sizes(body)
        try:
            request = cls.model_validate(body)
        except ValidationError as error:
            raise _request_error(error) from None
        check_extra_fields(request.model_extra or {})
        return request


class ApiRequest(JsonBody):
    """A JSON body that names the model or an adapter."""

    model: str


class GenerationRequest(ApiRequest):
    """The fields that /v1/completions and /v1/chat/completions share. SamplingParams describes their meanings."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Integer | None = None
    temperature: float | None = None
    top_k: Integer | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, JsonValue] | None = None
    seed: Integer | None = None
    max_tokens: Integer | None = None
    min_tokens: Integer | None = None
    stop: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    stop_token_ids: Annotated[list[Integer], Field(fail_fast=True)] | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)

    def _sampling_params(
        self,
        defaults: SamplingDefaults,
        *,
        max_tokens: int | None,
        logprobs: int | None,
        prompt_logprobs: int | None = None,
    ) -> SamplingParams:
        chosen: dict[str, object] = dict(defaults)
        chosen |= {name: value for name in _SAMPLING_FIELDS if (value := getattr(self, name)) is not None}
        chosen |= {"max_tokens": max_tokens, "logprobs": logprobs, "prompt_logprobs": prompt_logprobs}
        chosen["logit_bias"] = _token_bias(self.logit_bias or {})
        return SamplingParams(**chosen)  # pyright: ignore[reportArgumentType]  # it checks each value itself


def prompt_list(prompt: str | list[str] | list[int] | list[list[int]], field: str) -> list[str | list[int]]:
    """Returns the prompts of a field that accepts one or more, as texts or token ids.

    Raises:
      RequestError: The list is empty.
    """
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise RequestError(f"{field} is an empty list; give at least one {field} or token id", param=field)
    if isinstance(prompt[0], int):
        return [[token for token in prompt if isinstance(token, int)]]
    return [item for item in prompt if not isinstance(item, int)]


def _token_bias(bias: Mapping[str, JsonValue]) -> dict[int, float]:
    found: dict[int, float] = {}
    for token, value in bias.items():
        if not (token.isascii() and token.isdigit() and len(token) <= 10):
            raise RequestError(
                f"logit_bias has the key {token[:50]!r}; expected token ids such as '42'", param="logit_bias"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise RequestError(
                f"logit_bias.{token}={shown_value(value)} is not a number; expected -100 to 100",
                param=f"logit_bias.{token}",
            )
        found[int(token)] = value
    return found


# pydantic reports each member of a union that did not match. One sentence replaces its reports.
_PROMPTS = "a string, a list of strings, a list of token ids, or a list of lists of token ids"
_UNION_EXPECTATIONS = {
    "input": _PROMPTS,
    "prompt": _PROMPTS,
    "stop": "a string or a list of strings",
}


def _request_error(error: ValidationError) -> RequestError:
    first: ErrorDetails = error.errors(include_url=False, include_context=False)[0]
    field = str(first["loc"][0])[:100]
    if first["type"] == "missing":
        param = ".".join(map(str, first["loc"]))
        return RequestError(f"{param} is missing; it is required", param=param)
    if field in _UNION_EXPECTATIONS:
        return RequestError(f"{field} is of the wrong type; expected {_UNION_EXPECTATIONS[field]}", param=field)
    if first["type"] == "extra_forbidden":
        param = ".".join(map(str, first["loc"]))[:200]
        return RequestError(f"unknown field {param!r}; check the spelling or leave it out", param=param)
    param = ".".join(map(str, first["loc"]))[:200]
    # pydantic's message would name an internal class.
    expected = "Input should be an object" if first["type"] == "model_type" else first["msg"]
    return RequestError(f"{param}={shown_value(first['input'])}: {expected}", param=param)
