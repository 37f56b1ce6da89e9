"""Jinja's filters with a size check. Filters that can build values without bound are removed."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable

from jinja2 import Environment, pass_environment
from jinja2.filters import make_attrgetter

from ryzjax.data.template_budget import current_budget

__all__ = ["bound_filters", "countable", "counted"]

_REMOVED_FILTERS = (
    "batch", "center", "filesizeformat", "format", "pprint", "random", "round", "slice", "urlize", "wordwrap", "xmlattr"
)  # fmt: skip
"""Filters that build or loop without bound, or that a prompt does not need."""
_TEXT_FILTERS = (
    "capitalize", "e", "escape", "forceescape", "indent", "lower", "replace", "safe", "string", "striptags", "title",
    "trim", "truncate", "upper", "urlencode", "wordcount",
)  # fmt: skip
"""Filters that turn any value into text."""


def bound_filters(environment: Environment) -> None:
    """Removes or wraps the environment's filters."""
    for name in _REMOVED_FILTERS:
        del environment.filters[name]
    environment.filters["indent"] = _bounded_indent(environment.filters["indent"])
    environment.filters["replace"] = _replace
    environment.filters["join"] = _join
    for name in _TEXT_FILTERS:
        environment.filters[name] = counted(environment.filters[name])


def _bounded_indent(indent: Callable[..., str]) -> Callable[..., str]:
    def bounded(text: str, width: int | str = 4, first: bool = False, blank: bool = False) -> str:
        step = len(width) if isinstance(width, str) else width
        current_budget().check_size(len(text) + (text.count("\n") + 1) * max(step, 0))
        return indent(text, width, first, blank)

    return bounded


def _replace(text: object, old: object, new: object, count: int | None = None) -> str:
    text, old, new = str(text), str(old), str(new)
    current_budget().check_size(len(text) + text.count(old) * len(new))
    return text.replace(old, new, -1 if count is None else count)


@pass_environment
def _join(
    environment: Environment, values: Iterable[object], separator: object = "", attribute: str | None = None
) -> str:
    if attribute is not None:
        get = make_attrgetter(environment, attribute)
        values = (get(value) for value in values)
    texts = [str(countable(value)) for value in values]
    separator = str(separator)
    current_budget().check_size(len(texts) * len(separator) + sum(map(len, texts)))
    return separator.join(texts)


def counted(text_filter: Callable[..., object]) -> Callable[..., object]:
    """Wraps a filter so that it first checks how much text its arguments make."""

    @functools.wraps(text_filter)  # keeps the mark by which Jinja passes the environment or context first
    def counted(*args: object, **kwargs: object) -> object:
        for arg in args:
            countable(arg)
        return text_filter(*args, **kwargs)

    return counted


def countable(value: object) -> object:
    """Returns `value` after checking that its text stays within the limits.

    A list that contains another list twice, nested forty times, is small in memory but huge as text.
    """
    if not isinstance(value, (list, tuple, dict)):
        return value
    budget = current_budget()
    count = 0
    pending: list[object] = [value]
    while pending:
        item = pending.pop()
        count += len(item) if isinstance(item, (str, list, tuple, dict)) else 1
        budget.check_size(count)
        if isinstance(item, dict):
            pending.extend(item)
            pending.extend(item.values())
        elif isinstance(item, (list, tuple)):
            pending.extend(item)
    return value
