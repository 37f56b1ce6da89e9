"""Parses JSON bodies under a limit on the number of their values, which bounds the cost of parsing.

The number of bytes is not enough: a megabyte of JSON may hold one string, or half a million empty lists, which cost a
hundred times as much to build. A body that costs too much is refused after a scan of its bytes that builds nothing.
"""

from __future__ import annotations

import numpy as np
import pydantic_core

from ryzjax.errors import RequestError

__all__ = ["CONTAINER_COST", "parse_object", "parsing_cost"]

CONTAINER_COST = 16
"""Cost of a list, an object or a key, relative to a number in a flat list (measured: 8 to 16)."""
_COSTS = {b",": 1, b"[": CONTAINER_COST, b"{": CONTAINER_COST, b":": CONTAINER_COST}
_BLOCK_BYTES = 1 << 16
_QUOTE, _BACKSLASH = ord('"'), ord("\\")
_COST_OF_BYTE = np.zeros(256, np.uint8)
for _byte, _cost in _COSTS.items():
    _COST_OF_BYTE[ord(_byte)] = _cost


def parse_object(content: bytes, *, max_cost: int) -> dict[str, object]:
    """Parses a JSON object.

    Args:
      content: The JSON in UTF-8.
      max_cost: The largest number of values at any depth. A list, an object and a key count `CONTAINER_COST` each.

    Raises:
      RequestError: The content is not JSON, is not an object, or costs too much.
    """
    if parsing_cost(content, at_most=max_cost) > max_cost:
        raise RequestError(
            f"the body has more than {max_cost} JSON values, or more than {max_cost // CONTAINER_COST} lists, objects "
            "and keys; send several smaller requests",
            code="body_too_complex",
        )
    try:
        parsed = pydantic_core.from_json(content, allow_inf_nan=False)
    except ValueError as error:
        raise RequestError(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(parsed, dict):
        raise RequestError('the body is not a JSON object; expected an object such as {"model": ...}')
    return parsed


def parsing_cost(content: bytes, *, at_most: int) -> int:
    """Returns an upper bound on the cost of parsing, from the commas, colons and opening brackets outside strings.

    Args:
      content: Any bytes.
      at_most: The cost after which counting stops.

    Returns:
      The bound, or some number above `at_most` if the bound is above it.
    """
    if _cost_with_strings(content, at_most) <= at_most:
        return at_most  # true of nearly every body: the cost is small enough even with the separators inside strings
    data = np.frombuffer(content, np.uint8)
    cost = 0
    in_string = False
    num_backslashes = 0
    for start in range(0, len(data), _BLOCK_BYTES):
        block = data[start : start + _BLOCK_BYTES]
        quotes = block == _QUOTE
        quotes &= ~_escaped(block, num_backslashes)
        # The parity of a running sum survives its overflow.
        inside = (np.cumsum(quotes, dtype=np.uint8) + np.uint8(in_string)) & 1
        cost += int(np.sum(_COST_OF_BYTE[block] * (1 - inside), dtype=np.int64))
        if cost > at_most:
            break
        in_string = bool(inside[-1])
        others = np.flatnonzero(block != _BACKSLASH)
        num_backslashes = len(block) - 1 - int(others[-1]) if len(others) else num_backslashes + len(block)
    return cost


def _cost_with_strings(content: bytes, at_most: int) -> int:
    """Returns the cost with the separators inside strings included."""
    cost = 0
    for start in range(0, len(content), _BLOCK_BYTES):
        end = start + _BLOCK_BYTES
        cost += sum(content.count(byte, start, end) * each for byte, each in _COSTS.items())
        if cost > at_most:
            break
    return cost


def _escaped(block: np.ndarray, before: int) -> np.ndarray:
    """Returns whether each byte follows an odd number of backslashes. `before` backslashes precede the block."""
    is_backslash = block == _BACKSLASH
    if not before and not is_backslash.any():
        return np.zeros(len(block), bool)
    # Position of the last byte, up to each byte, that is not a backslash. The first run may start before the block.
    last_other = np.where(is_backslash, -1 - before, np.arange(len(block)))
    last_other = np.maximum.accumulate(last_other)
    run = np.arange(len(block)) - last_other
    return np.concatenate(([before], run[:-1])) % 2 == 1
