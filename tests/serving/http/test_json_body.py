"""The cost of a JSON body is known before it is parsed."""

from __future__ import annotations

import json
import random

import pytest

from ryzjax.errors import RequestError
from ryzjax.serving.http.guard.json_body import CONTAINER_COST, parse_object, parsing_cost


def _reference(content: bytes) -> int:
    """Returns the cost of the separators outside strings, counted byte by byte."""
    cost, in_string, position = 0, False, 0
    while position < len(content):
        byte = content[position : position + 1]
        if in_string and byte == b"\\":
            position += 1
        elif byte == b'"':
            in_string = not in_string
        elif not in_string:
            cost += {b",": 1, b"[": CONTAINER_COST, b"{": CONTAINER_COST, b":": CONTAINER_COST}.get(byte, 0)
        position += 1
    return cost


def _value(rng: random.Random, depth: int = 0) -> object:
    kind = rng.random()
    if depth > 4 or kind < 0.4:
        text = rng.choice(['a,[{:"\\', "\\", '"', "{"]) * rng.choice([0, 1, 2, 3, 40, 33_000, 70_001])
        return rng.choice([1, None, True, text])
    if kind < 0.7:
        return [_value(rng, depth + 1) for _ in range(rng.randint(0, 5))]
    return {f'{i}\\",': _value(rng, depth + 1) for i in range(rng.randint(0, 5))}


def test_separators_inside_strings_do_not_count() -> None:
    rng = random.Random(3)
    costs = []
    for _ in range(15):
        content = json.dumps([_value(rng), _value(rng)]).encode()
        cost = _reference(content)
        costs.append(cost)
        assert parsing_cost(content, at_most=cost) <= cost
        assert parsing_cost(content, at_most=cost - 1) > cost - 1
    assert max(costs) > 500


@pytest.mark.parametrize(
    "content",
    [
        b'{"a":[' + b"null," * 1000 + b"1]}",
        b'{"a":[' + b"[]," * 60 + b"1]}",
        b"{" + b",".join(b'"%d":1' % i for i in range(60)) + b"}",
        b"[" * 1_000_000,
        b"{" + b'"a":{' * 1_000_000,
    ],
)
def test_too_many_values_are_refused(content: bytes) -> None:
    with pytest.raises(RequestError, match="more than 1000 JSON values, or more than 62 lists") as refused:
        parse_object(content, max_cost=1000)
    assert refused.value.code == "body_too_complex"


def test_long_strings_of_separators_are_taken() -> None:
    text = ',[{:"\\' * 50_000
    assert parse_object(json.dumps({"a": text}).encode(), max_cost=CONTAINER_COST * 2) == {"a": text}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b'{"a": NaN}', b'{"a": "\xff"}', b'{"a": "\\ud800"}'])
def test_invalid_json(content: bytes) -> None:
    with pytest.raises(RequestError, match="not valid JSON"):
        parse_object(content, max_cost=1000)
