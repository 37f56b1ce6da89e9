"""The runtime checker of array annotations: beartype, for the annotations that give a shape and a dtype.

Others are not checked. Many a tree is made of arrays, and its leaves stand for shapes, shardings or names elsewhere,
as JAX's transformations have it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import get_args

from beartype import beartype
from jaxtyping import AbstractArray

__all__ = ["CHECKER", "check"]


def _has_shape(hint: object) -> bool:
    return (inspect.isclass(hint) and issubclass(hint, AbstractArray)) or any(map(_has_shape, get_args(hint)))


def check(function: Callable[..., object]) -> Callable[..., object]:
    """The stand-in that jaxtyping makes of a function, with only the annotations that are to be checked."""
    hints = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    function.__annotations__ = hints
    return beartype(function) if hints else function


CHECKER = "sys.modules['tests.typecheck'].check"
"""`check` as jaxtyping's import hook wants it named; pytest gives the package `tests` no attributes."""
