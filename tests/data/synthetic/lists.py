"""Parses the pairs of a retrieval question from its text."""

from __future__ import annotations

import re

_FORMS = (
    r"^- (\w+): (\w+)$",
    r"The \w+ of (\w+) is (\w+)\.",
    r"^ (\w+) = (\w+)$",
    r"^\w+ (\w+): (\w+)$",
    r" (\w+) (\w+)(?=,|$)",
)


def listed(content: str) -> dict[str, str]:
    """Returns the values by key, from the lines between the introduction and the question."""
    body = "\n".join(content.split("\n")[1:-1]).rstrip("\n")
    found = next(pairs for form in _FORMS if (pairs := re.findall(form, body, re.MULTILINE)))
    assert len(dict(found)) == len(found)
    return dict(found)
