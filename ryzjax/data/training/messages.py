"""Reads messages of rows, in OpenAI's or ShareGPT's format, into the format of chat templates."""

from __future__ import annotations

import json
from collections.abc import Mapping

from ryzjax.data.row import Row

__all__ = ["read_conversation_column", "read_messages", "read_tools"]

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "model": "assistant",
    "chatbot": "assistant",
    "function_call": "assistant",
    "system": "system",
    "observation": "tool",
    "tool": "tool",
    "function_response": "tool",
}


def read_conversation_column(row: Row) -> list[dict[str, object]]:
    """Returns the messages of a row, from its column `messages`, `conversations` or `conversation`.

    Raises:
      DataError: The row has no such column, or a message is malformed.
    """
    name = next((name for name in ("messages", "conversations", "conversation") if name in row), "messages")
    return read_messages(row, name)


def read_messages(row: Row, name: str) -> list[dict[str, object]]:
    """Returns the messages of a column, which have role and content, or from and value.

    Raises:
      UntrainedRowError: The list is empty.
      DataError: The column is not a list of messages, or a message is malformed.
    """
    value = row.value(name)
    if not isinstance(value, (list, tuple)):
        raise row.error(f"{name} is a {type(value).__name__}; expected a list of messages")
    if not value:
        raise row.untrained(f"{name} is empty; expected at least one message")
    return [_message(row, f"{name}[{i}]", message) for i, message in enumerate(value)]


def read_tools(row: Row) -> list[Mapping[str, object]] | None:
    """Returns the functions that a row offers: a list of JSON schemas, or JSON text of one. None if there are none.

    Raises:
      DataError: `tools` is neither.
    """
    value = row.values.get("tools")
    if isinstance(value, str):
        value = _json(row, "tools", value) if value.strip() else None
    if value is None or value == []:
        return None
    if not isinstance(value, list) or not all(isinstance(tool, Mapping) for tool in value):
        raise row.error(f"tools={value!r:.80} is not a list of JSON schemas, nor the JSON text of one")
    # ShareGPT has bare functions, but templates expect OpenAI's wrapper.
    return [
        tool if "function" in tool or "name" not in tool else {"type": "function", "function": tool} for tool in value
    ]


def _message(row: Row, where: str, message: object) -> dict[str, object]:
    if not isinstance(message, Mapping):
        raise row.error(f"{where} is a {type(message).__name__}; expected an object with role and content")
    if "from" in message and "role" not in message:
        return _sharegpt(row, where, message)
    role = message.get("role")
    if not isinstance(role, str) or not role:
        raise row.error(f"{where}.role={role!r:.80} is not a role; expected system, user, assistant or tool")
    content = message.get("content")
    if content is None and not message.get("tool_calls"):
        raise row.error(f"{where} (role {role!r}) has no content; expected text, a list of parts, or tool_calls")
    if not isinstance(content, (str, list, tuple, type(None))):
        raise row.error(f"{where}.content={content!r:.80} is a {type(content).__name__}; expected text")
    result = {str(key): value for key, value in message.items()}
    if message.get("tool_calls"):
        result["tool_calls"] = _tool_calls(row, f"{where}.tool_calls", message["tool_calls"])
        result.setdefault("content", "")
    return result


def _sharegpt(row: Row, where: str, message: Mapping[object, object]) -> dict[str, object]:
    speaker, value = message.get("from"), message.get("value")
    role = _SHAREGPT_ROLES.get(speaker) if isinstance(speaker, str) else None
    if role is None:
        raise row.error(f"{where}.from={speaker!r:.80} is unknown; expected one of {', '.join(_SHAREGPT_ROLES)}")
    if not isinstance(value, str):
        raise row.error(f"{where}.value={value!r:.80} is not text")
    if speaker != "function_call":
        return {"role": role, "content": value}
    calls = _json(row, f"{where}.value", value)
    return {"role": role, "content": "", "tool_calls": _tool_calls(row, f"{where}.value", calls)}


def _tool_calls(row: Row, where: str, calls: object) -> list[dict[str, object]]:
    """Returns calls in OpenAI's format with the arguments as an object, which templates print as JSON."""
    result: list[dict[str, object]] = []
    for i, call in enumerate(calls if isinstance(calls, (list, tuple)) else [calls]):
        function = call.get("function", call) if isinstance(call, Mapping) else None
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise row.error(f"{where}[{i}]={call!r:.80} is not a call; expected an object with name and arguments")
        assert isinstance(call, Mapping)
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            arguments = _json(row, f"{where}[{i}].arguments", arguments)
        more = {str(key): value for key, value in call.items() if key in ("id", "index")}
        result.append({"type": "function", **more, "function": {"name": function["name"], "arguments": arguments}})
    return result


def _json(row: Row, where: str, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise row.error(f"{where} is not valid JSON ({error}): {text!r:.80}") from error
