"""Adapts RyzJAX's docstrings to what the site's tools expect. A Griffe extension, named in mkdocs.yml.

- `a, b: text` in a section of arguments becomes an entry for `a` and one for `b`. Griffe takes it for one parameter
  with the name "a, b", and would not notice if one of the two were renamed.
- `x[0](y)` and `[a][b]` are indexing and arrays in a docstring, and links in Markdown. Their brackets are escaped.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension, Object

JOINT = re.compile(r"^( +)((?:\*{0,2}\w+, )+\*{0,2}\w+): (.+(?:\n\1 +.*)*)$", re.MULTILINE)
LINK = re.compile(r"(`[^`]*`)|\[(?=[^\[\]\n]*\] ?[\[(])")


class ReadDocstrings(Extension):
    """Rewrites the docstring of each object as it is read."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Rewrites one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = rewrite(obj.docstring.value)


def rewrite(text: str) -> str:
    """Returns a docstring with an entry for each parameter and without accidental links."""
    if "Args:" in text or "Attributes:" in text:
        text = JOINT.sub(_entries, text)
    return LINK.sub(lambda found: found[1] or r"\[", text)


def _entries(found: re.Match[str]) -> str:
    indent, names, told = found.groups()
    return "\n".join(f"{indent}{name}: {told}" for name in names.split(", "))
