"""The runtime checker of array annotations: beartype, for the annotations that give a shape and a dtype.

Other annotations are not checked. A pytree is often annotated as a tree of arrays, while its leaves are shapes,
shardings or names in places, as is usual with JAX's transformations.
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
    """Returns the checked function that jaxtyping puts in a function's place. Only annotations with a shape count."""
    hints = {name: hint for name, hint in function.__annotations__.items() if _has_shape(hint)}
    function.__annotations__ = hints
    return beartype(function) if hints else function


CHECKER = "sys.modules['tests.typecheck'].check"
"""The name of `check` for jaxtyping's import hook. pytest sets no attributes on the package `tests`."""
