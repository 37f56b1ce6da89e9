"""Typed, checked reads from an HF `config.json`: every failure names the field, its value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from ryzjax.errors import UnsupportedModelError

__all__ = ["ConfigFields"]

_MAX_SIZE = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class ConfigFields:
    """A JSON object and the name to blame in messages.

    Attributes:
      raw: the object as read.
      source: file (and the path inside it) that messages name.
    """

    raw: Mapping[str, object]
    source: str

    def fail(self, field: str, expected: str, *, remedy: str) -> UnsupportedModelError:
        """Returns (does not raise) the error for a field whose value is not supported."""
        value = repr(self.raw[field]) if field in self.raw else "missing"
        if len(value) > 200:
            value = value[:200] + "..."
        return UnsupportedModelError(f"{self.source}: {field} is {value}; expected {expected}. {remedy}")

    def has(self, field: str) -> bool:
        """Whether the field is there and not null (HF writes null for "use the default")."""
        return self.raw.get(field) is not None

    def integer(self, field: str, *, default: int | None = None, low: int = 1, high: int = _MAX_SIZE) -> int:
        """An integer in [low, high]; `default` where it is absent or null, an error where there is no default."""
        value = self.raw.get(field)
        expected = f"an integer from {low} to {high}"
        if value is None:
            if default is None:
                raise self.fail(field, expected, remedy="The field is required: fix the config or re-export the model.")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(field, expected, remedy="Fix the config or re-export the model.")
        return value

    def number(
        self,
        field: str,
        *,
        default: float | None = None,
        low: float = 0.0,
        high: float = math.inf,
    ) -> float:
        """A finite number in (low, high]; an error where it is absent and there is no default."""
        value = self.raw.get(field)
        expected = f"a number above {low:g}" + ("" if math.isinf(high) else f", at most {high:g}")
        if value is None:
            if default is None:
                raise self.fail(field, expected, remedy="The field is required: fix the config or re-export the model.")
            return default
        # Python integers are unbounded, and isfinite() raises on one that no float holds.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
            raise self.fail(field, expected, remedy="Fix the config or re-export the model.")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.fail(field, expected, remedy="Fix the config or re-export the model.")
        return float(value)

    def boolean(self, field: str, *, default: bool) -> bool:
        """true or false; `default` where it is absent or null."""
        value = self.raw.get(field)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(field, "true or false", remedy="Fix the config or re-export the model.")
        return value

    def token_ids(self, field: str, *, vocab_size: int) -> tuple[int, ...]:
        """One id or a list of ids, each inside the vocabulary; () where it is absent or null."""
        value = self.raw.get(field)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        checked: list[int] = []
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise self.fail(
                    field,
                    f"token ids from 0 to vocab_size - 1 = {vocab_size - 1}",
                    remedy="Fix the file: the tokenizer and the model disagree.",
                )
            checked.append(token)
        return tuple(dict.fromkeys(checked))
