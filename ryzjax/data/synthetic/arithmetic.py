"""Arithmetic with small numbers: mostly addition, then the other operations, comparisons and word problems.

An answer repeats the operands before the result ("47 + 38 = 85"), so that the result follows its operands directly,
whatever the wording of the question.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import Exchange
from ryzjax.data.synthetic.words import FIRST_NAMES, PRODUCTS

__all__ = ["ADDITION_SPACE", "addition", "arithmetic", "two_digit_addition"]

_Pairs = Callable[[], tuple[int, int]]

ADDITION_SPACE = "addition"
"""The space in which every sum of two numbers is assigned to a split, with its addends sorted."""

_ADD = (
    "What is {a} + {b}?",
    "{a} + {b}",
    "{a} + {b} =",
    "{a} + {b} = ?",
    "Add {a} and {b}.",
    "Calculate {a} + {b}.",
    "How much is {a} plus {b}?",
    "What is {a} plus {b}?",
    "What is the sum of {a} and {b}?",
    "Can you add {a} and {b}?",
    "Please compute {a} + {b}.",
    "what is {a}+{b}?",
)
_SUBTRACT = (
    "What is {a} - {b}?",
    "{a} - {b}",
    "{a} - {b} =",
    "Subtract {b} from {a}.",
    "Calculate {a} - {b}.",
    "How much is {a} minus {b}?",
    "What is {a} minus {b}?",
    "Please compute {a} - {b}.",
)
_MULTIPLY = (
    "What is {a} * {b}?",
    "{a} * {b}",
    "Multiply {a} by {b}.",
    "What is {a} times {b}?",
    "How much is {a} times {b}?",
    "What is {a} x {b}?",
)
_GAIN = (
    "{name} has {a} {things} and buys {b} more. How many {things} does {name} have now?",
    "There are {a} {things} in the shop. {b} more arrive. How many {things} are there now?",
    "{name} sold {a} {things} on Monday and {b} on Tuesday. How many {things} is that in all?",
)
_LOSS = (
    "{name} has {a} {things} and gives away {b}. How many {things} are left?",
    "There are {a} {things} on the shelf. {name} takes {b}. How many {things} are left?",
)


def two_digit_addition(draw: Draw) -> Exchange:
    """Draws a sum of two numbers from 10 to 99."""
    rng = draw.rng
    return _addition(draw, lambda: (rng.randint(10, 99), rng.randint(10, 99)))


def addition(draw: Draw) -> Exchange:
    """Draws a sum of two numbers of one to three digits, mostly two."""
    return _addition(draw, lambda: _addends(draw.rng))


def arithmetic(draw: Draw) -> Exchange:
    """Draws a difference, product, sum of three, word problem, comparison, double, half, or even-or-odd question."""
    return draw.rng.choice(_KINDS)(draw)


def _addition(draw: Draw, make: _Pairs) -> Exchange:
    a, b = draw.fresh(ADDITION_SPACE, make, key=_sorted)
    return Exchange(question=draw.rng.choice(_ADD).format(a=a, b=b), answer=f"{a} + {b} = {a + b}")


def _addends(rng: random.Random) -> tuple[int, int]:
    kind = rng.random()
    if kind < 0.72:
        return rng.randint(10, 99), rng.randint(10, 99)
    if kind < 0.90:
        return rng.randint(0, 99), rng.randint(0, 99)
    return rng.randint(100, 999), rng.randint(1, 999)


def _subtraction(draw: Draw) -> Exchange:
    a, b = draw.fresh("subtraction", lambda: _descending(draw.rng))
    return Exchange(question=draw.rng.choice(_SUBTRACT).format(a=a, b=b), answer=f"{a} - {b} = {a - b}")


def _multiplication(draw: Draw) -> Exchange:
    # The factors are not sorted. A held-out product is trained on with its factors swapped, because a multiplication
    # table can only be memorized.
    a, b = draw.fresh("multiplication", lambda: (draw.rng.randint(0, 12), draw.rng.randint(0, 12)))
    return Exchange(question=draw.rng.choice(_MULTIPLY).format(a=a, b=b), answer=f"{a} * {b} = {a * b}")


def _three(draw: Draw) -> Exchange:
    rng = draw.rng
    a, b, c = rng.randint(1, 30), rng.randint(1, 30), rng.randint(1, 9)
    # Both partial sums are problems of the addition space.
    while not all(draw.admits(ADDITION_SPACE, _sorted(pair)) for pair in ((a, b), (a + b, c))):
        a, b, c = rng.randint(1, 30), rng.randint(1, 30), rng.randint(1, 9)
    question = rng.choice(("What is {0} + {1} + {2}?", "{0} + {1} + {2}", "Add {0}, {1} and {2}.")).format(a, b, c)
    return Exchange(question=question, answer=f"{a} + {b} + {c} = {a + b} + {c} = {a + b + c}")


def _word_problem(draw: Draw) -> Exchange:
    rng = draw.rng
    words = {"name": rng.choice(FIRST_NAMES), "things": rng.choice(PRODUCTS)}
    if rng.random() < 0.5:
        a, b = draw.fresh(ADDITION_SPACE, lambda: (rng.randint(2, 60), rng.randint(2, 39)), key=_sorted)
        question, answer = rng.choice(_GAIN), f"{a} + {b} = {a + b}"
    else:
        a, b = draw.fresh("subtraction", lambda: _descending(rng))
        question, answer = rng.choice(_LOSS), f"{a} - {b} = {a - b}"
    return Exchange(question=question.format(a=a, b=b, **words), answer=answer)


def _comparison(draw: Draw) -> Exchange:
    rng = draw.rng
    a, b = draw.fresh("comparison", lambda: rng.sample(range(200), 2))
    largest = rng.random() < 0.5
    word = rng.choice(("larger", "bigger", "greater") if largest else ("smaller", "less"))
    question = rng.choice(("Which is {word}, {a} or {b}?", "Which number is {word}: {a} or {b}?"))
    return Exchange(question=question.format(word=word, a=a, b=b), answer=str(max(a, b) if largest else min(a, b)))


def _double_or_half(draw: Draw) -> Exchange:
    rng = draw.rng
    word, number = draw.fresh("double or half", lambda: (rng.choice(("double", "half")), rng.randint(1, 60)))
    if word == "double":
        return Exchange(question=f"What is double {number}?", answer=f"{number} * 2 = {number * 2}")
    return Exchange(question=f"What is half of {number * 2}?", answer=f"{number * 2} / 2 = {number}")


def _parity(draw: Draw) -> Exchange:
    number = draw.fresh("parity", lambda: draw.rng.randint(0, 999))
    word = "odd" if number % 2 else "even"
    return Exchange(
        question=draw.rng.choice(("Is {n} even or odd?", "Even or odd: {n}?")).format(n=number),
        answer=f"{number} is {word}.",
    )


def _descending(rng: random.Random) -> tuple[int, int]:
    a, b = rng.randint(1, 99), rng.randint(1, 99)
    return max(a, b), min(a, b)


def _sorted(pair: tuple[int, int]) -> tuple[int, int]:
    return min(pair), max(pair)


_KINDS = (
    _subtraction,
    _subtraction,
    _multiplication,
    _three,
    _word_problem,
    _word_problem,
    _comparison,
    _double_or_half,
    _parity,
)
