"""Chat templates turn messages into the model's prompt text, as transformers' `apply_chat_template` does."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from ryzjax.data.template_budget import TemplateLimits
from ryzjax.data.template_sandbox import TemplateSandbox
from ryzjax.errors import ConfigError, RequestError

__all__ = ["ChatTemplate", "MarkedText"]

_MAX_TEMPLATE_CHARS = 1_000_000
_MAX_DEPTH = 64
_RESERVED = frozenset({"messages", "tools", "documents", "add_generation_prompt"})


@dataclass(frozen=True, kw_only=True)
class MarkedText:
    """A rendered conversation, and the half-open spans of its characters that the assistant writes, in order."""

    text: str
    spans: tuple[tuple[int, int], ...]


class ChatTemplate:
    """A compiled chat template.

    Args:
      source: Jinja text.
      name: the file that the template comes from, for error messages.
      special_tokens: variables such as `bos_token` that templates read.
      limits: limits on the time and the size of a rendering.

    Attributes:
      source: the Jinja text.
      marks_generation: whether the template marks what the assistant writes with {% generation %}.

    Raises:
      ConfigError: the template is not valid Jinja, or it is too long.
    """

    def __init__(
        self,
        source: str,
        *,
        name: str = "chat template",
        special_tokens: Mapping[str, str] | None = None,
        limits: TemplateLimits | None = None,
    ):
        if len(source) > _MAX_TEMPLATE_CHARS:
            raise ConfigError(f"{name}: {len(source)} characters; expected at most {_MAX_TEMPLATE_CHARS}")
        self.source = source
        self._name = name
        self._special_tokens = dict(special_tokens or {})
        sandbox = TemplateSandbox(limits or TemplateLimits())
        sandbox.add_text_filter("tojson", _tojson)
        sandbox.globals["raise_exception"] = _raise_exception
        sandbox.globals["strftime_now"] = _strftime_now
        try:
            self._render = sandbox.compile_bounded(source)
            self.marks_generation = sandbox.marks_generation(source)
        except (TemplateSyntaxError, SyntaxError, RecursionError) as error:
            raise ConfigError(
                f"{name}: not a valid Jinja template ({error}); fix it, or give another with --chat-template FILE"
            ) from error

    def render(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """Returns the prompt text of a conversation.

        Args:
          messages: objects such as `{"role": ..., "content": ...}`. The template receives them unchanged.
          tools: JSON schemas of the functions that the model may call.
          add_generation_prompt: end the prompt with the start of the assistant's turn.
          variables: other variables that the template reads, such as `enable_thinking`.

        Raises:
          RequestError: the template refuses the messages, fails on them, or exceeds its limits.
        """
        return self._run(messages, tools, add_generation_prompt, variables, ("", ""))

    def render_marked(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        **variables: object,
    ) -> MarkedText:
        """Renders a whole conversation and finds its {% generation %} blocks; arguments and errors as for `render`."""
        # The marks are random, so no message can contain one.
        marks = (f"\ue000{secrets.token_hex(8)}", f"\ue001{secrets.token_hex(8)}")
        rendered = self._run(messages, tools, False, variables, marks)
        text: list[str] = []
        spans: list[tuple[int, int]] = []
        size = start = 0
        for part in re.split("(" + "|".join(marks) + ")", rendered):
            if part == marks[0]:
                start = size
            elif part == marks[1]:
                spans.append((start, size))
            else:
                text.append(part)
                size += len(part)
        return MarkedText(text="".join(text), spans=tuple(span for span in spans if span[0] < span[1]))

    def _run(
        self,
        messages: Sequence[Mapping[str, object]],
        tools: Sequence[Mapping[str, object]] | None,
        add_generation_prompt: bool,
        variables: Mapping[str, object],
        marks: tuple[str, str],
    ) -> str:
        if not messages:
            raise RequestError("messages is empty; expected at least one message", param="messages")
        reserved = sorted(variables.keys() & (_RESERVED | self._special_tokens.keys()))
        if reserved:
            raise RequestError(
                f"template variables {reserved} are set by the server; leave them out", param="chat_template_kwargs"
            )
        scope: dict[str, object] = {
            **self._special_tokens,
            **{key: _plain(value, key) for key, value in variables.items()},
            "messages": _plain(list(messages), "messages"),
            "tools": None if tools is None else _plain(list(tools), "tools"),
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return self._render(scope, marks)
        except TemplateError as error:
            raise RequestError(
                f"the chat template refused the messages: {error.message or type(error).__name__}", param="messages"
            ) from error
        # Clients see this message, so it does not name the template's file on the server. The template is foreign code:
        # its expressions can raise any exception on unusual messages.
        except Exception as error:
            raise RequestError(
                f"the chat template failed on the messages ({type(error).__name__}: {error}); check the roles and the "
                "type of each content against what the model's template expects",
                param="messages",
            ) from error


def _plain(value: object, name: str, depth: int = 0) -> object:
    """Returns a copy in plain JSON types. An object with methods would be a way out of the sandbox."""
    if depth > _MAX_DEPTH:
        raise RequestError(f"{name} is nested deeper than {_MAX_DEPTH}; flatten it", param=name)
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, name, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, name, depth + 1) for item in value]
    raise RequestError(f"{name} holds a {type(value).__name__}; expected JSON types only", param=name)


def _tojson(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes HTML, but a prompt must not be escaped.
    if indent is not None and not 0 <= indent <= 16:
        raise TemplateError(f"tojson(indent={indent}) is out of range; expected 0 to 16")
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise TemplateError(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > 200:
        raise TemplateError("strftime_now: the pattern is longer than 200 characters")
    return datetime.now().strftime(pattern)
