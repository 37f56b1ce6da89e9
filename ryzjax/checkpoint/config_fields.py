"""ConfigFields: typed and checked reads from a Hugging Face config. Errors name the field, its value and the remedy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar, cast

from ryzjax.errors import UnsupportedModelError

__all__ = ["ConfigFields"]

Choice = TypeVar("Choice")

_MAX_SIZE = 2**31 - 1


@dataclass(frozen=True, kw_only=True)
class ConfigFields:
    """A JSON object with the name of its file.

    It records the keys that were read. A key that was never read may change the maths, and `hf.keys.check_keys` refuses
    it.

    Attributes:
      raw: The parsed object.
      source: The file, and the path inside it, for error messages.
      asked: The keys that were read so far.
    """

    raw: Mapping[str, object]
    source: str
    asked: set[str] = field(default_factory=set, compare=False)

    def _get(self, key: str) -> object:
        self.asked.add(key)
        return self.raw.get(key)

    def fail(self, key: str, expected: str, *, remedy: str) -> UnsupportedModelError:
        """Returns (does not raise) the error for a key whose value is not supported.

        Args:
          key: The key.
          expected: The supported values, in words.
          remedy: A sentence that says what to do.
        """
        value = repr(self.raw[key]) if key in self.raw else "missing"
        if len(value) > 200:
            value = value[:200] + "..."
        return UnsupportedModelError(f"{self.source}: {key} is {value}; expected {expected}. {remedy}")

    def has(self, key: str) -> bool:
        """Whether the key is present and not null. Hugging Face writes null to mean "use the default"."""
        return self._get(key) is not None

    def integer(self, key: str, *, default: int | None = None, low: int = 1, high: int = _MAX_SIZE) -> int:
        """Reads an integer in [low, high]. An absent or null key gives `default`, or an error without one."""
        value = self._get(key)
        expected = f"an integer from {low} to {high}"
        if value is None:
            if default is None:
                raise self.fail(key, expected, remedy="The field is required: fix the config or re-export the model.")
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.fail(key, expected, remedy="Fix the config or re-export the model.")
        return value

    def number(
        self,
        key: str,
        *,
        default: float | None = None,
        low: float = 0.0,
        high: float = math.inf,
    ) -> float:
        """Reads a finite number in (low, high]. An absent or null key gives `default`, or an error without one."""
        value = self._get(key)
        expected = f"a number above {low:g}" + ("" if math.isinf(high) else f", at most {high:g}")
        if value is None:
            if default is None:
                raise self.fail(key, expected, remedy="The field is required: fix the config or re-export the model.")
            return default
        # Python integers are unbounded, and isfinite() raises on one that is too large for a float.
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low < value <= high:
            raise self.fail(key, expected, remedy="Fix the config or re-export the model.")
        if isinstance(value, float) and not math.isfinite(value):
            raise self.fail(key, expected, remedy="Fix the config or re-export the model.")
        return float(value)

    def boolean(self, key: str, *, default: bool) -> bool:
        """Reads true or false; `default` if the key is absent or null."""
        value = self._get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.fail(key, "true or false", remedy="Fix the config or re-export the model.")
        return value

    def token_ids(self, key: str, *, vocab_size: int) -> tuple[int, ...]:
        """Reads one token id or a list of ids, each inside the vocabulary; () if the key is absent or null."""
        value = self._get(key)
        if value is None:
            return ()
        ids = value if isinstance(value, list) else [value]
        checked: list[int] = []
        for token in ids:
            if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token < vocab_size:
                raise self.fail(
                    key,
                    f"token ids from 0 to vocab_size - 1 = {vocab_size - 1}",
                    remedy="Fix the file: the tokenizer and the model disagree.",
                )
            checked.append(token)
        return tuple(dict.fromkeys(checked))

    def choice(self, key: str, allowed: Mapping[str, Choice], *, default: str) -> Choice:
        """Reads a string and returns its value in `allowed`. An absent or null key counts as `default`."""
        value = self._get(key)
        value = default if value is None else value
        if not isinstance(value, str) or value not in allowed:
            raise self.fail(key, f"one of {', '.join(map(repr, allowed))}", remedy="Other values are not supported.")
        return allowed[value]

    def numbers(self, key: str, *, length: int) -> tuple[float, ...]:
        """Reads a list of `length` positive finite numbers."""
        value = self._get(key)
        valid = isinstance(value, list) and len(value) == length
        if valid:
            valid = all(
                isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < math.inf
                for v in cast("list", value)
            )
        if not valid:
            raise self.fail(key, f"a list of {length} positive numbers", remedy="Fix the config.")
        return tuple(float(v) for v in cast("list[float]", value))

    def block(self, key: str) -> ConfigFields | None:
        """Returns the object under a key; None if the key is absent or null."""
        value = self._get(key)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.fail(key, "an object or null", remedy="Fix the config.")
        return ConfigFields(raw=cast("Mapping[str, object]", value), source=f"{self.source}: {key}")

    def value(self, key: str) -> object:
        """Returns the value of a key unchecked; None if the key is absent."""
        return self._get(key)

    def ignore(self, *keys: str) -> None:
        """Marks keys as read: given the other fields, they cannot change the maths."""
        self.asked.update(keys)
