"""Sorting numbers and words, and finding the extremes of a list."""

from __future__ import annotations

from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import Exchange
from ryzjax.data.synthetic.words import KEYS

__all__ = ["sorting"]

_UP = (
    "Sort these numbers: {0}",
    "Sort from smallest to largest: {0}",
    "Put in order: {0}",
    "Order these numbers from low to high: {0}",
    "Sort: {0}",
)
_DOWN = ("Sort from largest to smallest: {0}", "Order these numbers from high to low: {0}", "Sort descending: {0}")
_WORDS = ("Sort these words: {0}", "Sort alphabetically: {0}", "Put these words in alphabetical order: {0}")


def sorting(draw: Draw) -> Exchange:
    """Draws a list of three to six items, to sort or to name its largest or smallest."""
    kind = draw.rng.random()
    if kind < 0.25:
        return _words(draw)
    if kind < 0.45:
        return _extreme(draw)
    return _numbers(draw)


def _numbers(draw: Draw) -> Exchange:
    rng = draw.rng
    numbers = _drawn_numbers(draw)
    down = rng.random() < 0.25
    question = rng.choice(_DOWN if down else _UP).format(_listed(numbers))
    return Exchange(question=question, answer=_listed(sorted(numbers, reverse=down)))


def _extreme(draw: Draw) -> Exchange:
    rng = draw.rng
    numbers = _drawn_numbers(draw)
    word, of = rng.choice((("largest", max), ("biggest", max), ("smallest", min), ("lowest", min), ("highest", max)))
    question = rng.choice(("What is the {0} of {1}?", "Which number is the {0}: {1}?")).format(word, _listed(numbers))
    return Exchange(question=question, answer=str(of(numbers)))


def _words(draw: Draw) -> Exchange:
    rng = draw.rng
    words = draw.fresh("sorted words", lambda: rng.sample(KEYS, rng.randint(2, 4)), key=sorted)
    return Exchange(question=rng.choice(_WORDS).format(", ".join(words)), answer=", ".join(sorted(words)))


def _drawn_numbers(draw: Draw) -> list[int]:
    rng = draw.rng
    return draw.fresh("sorted numbers", lambda: rng.sample(range(100), rng.randint(3, 6)), key=sorted)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))
