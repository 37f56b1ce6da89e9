"""Every public exception is in `ryzjax.errors`, in its `__all__`, and in the tree that its docstring draws."""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module
from pathlib import Path

from ryzjax import errors
from ryzjax.errors import RyzJAXError

ROOT = Path(__file__).resolve().parents[1]
_LINE = re.compile(r"^ {4}([│├└─ ]*)(\w+Error)\b", re.MULTILINE)


def drawn_parents() -> dict[str, str | None]:
    """Returns the parent's name for each class, as the docstring of `ryzjax.errors` draws the tree."""
    parents: dict[str, str | None] = {}
    path: list[str] = []
    for indent, name in _LINE.findall(errors.__doc__ or ""):
        depth = len(indent) // 4
        assert name not in parents, f"{name} is drawn twice"
        parents[name] = path[depth - 1] if depth else None
        path[depth:] = [name]
    return parents


def public_exceptions() -> list[type[RyzJAXError]]:
    """Returns the classes of the package that derive from RyzJAXError and have a public name.

    A module is imported only if the name of one of its classes, or of a base class, suggests an exception.
    """
    found = []
    for file in sorted((ROOT / "ryzjax").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ClassDef) or node.name.startswith("_"):
                continue
            names = " ".join([node.name, *map(ast.unparse, node.bases)])
            if not re.search(r"(Error|Exception)\b", names):
                continue
            module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
            kind = getattr(module, node.name)
            if issubclass(kind, RyzJAXError):
                found.append(kind)
    return found


def test_the_tree_is_read_as_it_is_drawn() -> None:
    parents = drawn_parents()
    assert parents["RyzJAXError"] is None
    assert parents["LayoutError"] == "ConfigError"
    assert parents["EngineFailedError"] == "EngineStoppedError"


def test_every_public_exception_is_in_errors() -> None:
    found = public_exceptions()
    assert len(found) > 15
    elsewhere = sorted(f"{kind.__module__}.{kind.__name__}" for kind in found if kind.__module__ != errors.__name__)
    assert not elsewhere, f"move to ryzjax/errors.py: {elsewhere}"
    assert sorted(kind.__name__ for kind in found) == errors.__all__


def test_the_drawn_tree_is_the_tree() -> None:
    actual = {
        name: kind.__bases__[0].__name__ if issubclass(kind.__bases__[0], RyzJAXError) else None
        for name, kind in inspect.getmembers(errors, inspect.isclass)
        if issubclass(kind, RyzJAXError)
    }
    assert drawn_parents() == actual
