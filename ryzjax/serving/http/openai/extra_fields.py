"""Request fields that no model declares: which are ignored, which are refused, and how a refusal shows a value.

A field of a request is one of four things: used, harmless (accepted and ignored), unsupported (a 400 that says so), or
unknown (a 400 that names it). A misspelt `temprature` is therefore an error instead of a default.
"""

from __future__ import annotations

from collections.abc import Mapping

from ryzjax.errors import RequestError

__all__ = ["check_extra_fields", "shown_value"]

_STRING, _BOOLEAN, _STRINGS = "a string", "true or false", "an object of at most 16 strings"
# Field that is accepted and ignored -> its type, which is checked because a wrong type is a mistake of the client.
_HARMLESS = {
    "metadata": _STRINGS,
    "parallel_tool_calls": _BOOLEAN,
    "prompt_cache_key": _STRING,
    "prompt_cache_retention": _STRING,
    "safety_identifier": _STRING,
    "service_tier": _STRING,
    "store": _BOOLEAN,
    "user": _STRING,
}
_MAX_METADATA = 16

_NOTHING: tuple[object, ...] = (None,)
# Field that is not supported -> the values that ask for nothing and are therefore accepted.
_UNSUPPORTED: dict[str, tuple[object, ...]] = {
    "audio": _NOTHING,
    "best_of": (None, 1),
    "chat_template": _NOTHING,
    "chat_template_kwargs": (None, {}),
    "continue_final_message": (None, False),
    "echo": (None, False),
    "function_call": (None, "none"),
    "functions": (None, []),
    "guided_choice": _NOTHING,
    "guided_grammar": _NOTHING,
    "guided_json": _NOTHING,
    "guided_regex": _NOTHING,
    "modalities": (None, ["text"]),
    "moderation": _NOTHING,
    "prediction": _NOTHING,
    "priority": (None, 0),
    "prompt_logprobs": _NOTHING,
    "reasoning_effort": (None, "none"),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": _NOTHING,
    "suffix": (None, ""),
    "tool_choice": (None, "none", "auto"),
    "tools": (None, []),
    "truncate_prompt_tokens": _NOTHING,
    "use_beam_search": (None, False),
    "verbosity": (None, "medium"),
    "web_search_options": _NOTHING,
}


def check_extra_fields(extra: Mapping[str, object], *, where: str = "") -> None:
    """Checks the fields that no model declares.

    Args:
      extra: The undeclared fields with their values.
      where: The prefix of the field names in error messages, such as "messages.0.".

    Raises:
      RequestError: A field is unknown or unsupported, or a harmless field has a value of the wrong type.
    """
    for name, value in extra.items():
        if name in _HARMLESS and value is not None and not _is_of_kind(value, _HARMLESS[name]):
            raise RequestError(
                f"{where}{name}={shown_value(value)} is of the wrong type; expected {_HARMLESS[name]}, or leave it out",
                param=f"{where}{name}",
            )
        if name in _UNSUPPORTED and not _asks_for_nothing(value, _UNSUPPORTED[name]):
            raise RequestError(
                f"{where}{name} is not supported by this server; leave it out",
                param=f"{where}{name}",
                code="unsupported_parameter",
            )
    unknown = [where + name[:100] for name in extra if name not in _UNSUPPORTED and name not in _HARMLESS]
    if unknown:
        listed = ", ".join(map(repr, unknown[:10])) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        raise RequestError(
            f"unknown field {listed}; check the spelling or leave it out", param=unknown[0], code="unknown_parameter"
        )


def _is_of_kind(value: object, kind: str) -> bool:
    if kind == _BOOLEAN:
        return isinstance(value, bool)
    if kind == _STRING:
        return isinstance(value, str)
    if not isinstance(value, dict) or len(value) > _MAX_METADATA:
        return False
    return all(isinstance(one, str) for one in value.values())


def _asks_for_nothing(value: object, neutral: tuple[object, ...]) -> bool:
    # `1 == True` in Python. Comparing the types as well refuses `echo: 0` and `best_of: true`.
    return any(type(value) is type(allowed) and value == allowed for allowed in neutral)


def shown_value(value: object) -> str:
    """Returns a short form of a request's value for an error message."""
    # Only scalars are shown, because the repr of a nested or huge value is expensive and hard to read.
    if isinstance(value, str):
        return repr(value[:80])
    if value is None or isinstance(value, (bool, float)):
        return repr(value)
    if isinstance(value, int) and value.bit_length() <= 128:
        return repr(value)
    return f"<{type(value).__name__}>"
