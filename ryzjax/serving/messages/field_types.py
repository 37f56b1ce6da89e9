"""check_field_types: checks the values of a config's fields against their annotations."""

from __future__ import annotations

import types
from dataclasses import fields
from typing import TYPE_CHECKING, Literal, Union, get_args, get_origin, get_type_hints

from ryzjax.errors import ConfigError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["check_field_types"]


def check_field_types(config: DataclassInstance) -> None:
    """Checks every field of a dataclass whose annotations are plain classes, Literal, tuple[T, ...] or unions of them.

    Raises:
      ConfigError: a value does not have the type of its field.
    """
    kinds = get_type_hints(type(config))
    for field in fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        if not _fits(value, kind):
            raise ConfigError(f"{field.name}={value!r} is a {type(value).__name__}; expected {_name(kind)}")


def _fits(value: object, kind: object) -> bool:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return any(type(value) is type(choice) and value == choice for choice in args)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in args)
    if origin is tuple:
        return isinstance(value, tuple) and all(_fits(item, args[0]) for item in value)
    if kind is int or kind is float:
        # A bool is an int in Python, but a mistake here. An int is a valid float.
        return isinstance(value, (int, kind)) and not isinstance(value, bool)
    assert isinstance(kind, type), f"a field of a config is annotated {kind!r}, which is not checked"
    return isinstance(value, kind)


def _name(kind: object) -> str:
    origin, args = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ", ".join(repr(choice) for choice in args[:-1]) + f" or {args[-1]!r}" if args[1:] else repr(args[0])
    if origin in (Union, types.UnionType):
        return " or ".join(_name(part) for part in args)
    if origin is tuple:
        return f"a tuple of {_name(args[0])}"
    return "None" if kind is types.NoneType else str(getattr(kind, "__name__", kind))
