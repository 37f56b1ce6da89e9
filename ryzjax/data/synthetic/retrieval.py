"""Lists of keys and values, and questions that look keys up in them.

Three choices help the model to learn this skill early. Each list has many questions, because only answers are trained
on. Lists are short at first and become longer during the run (`max_context_pieces`). Answers name the key and then its
value, each after a space as in the list, so that the model copies exactly the same tokens.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass

from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import ChatRow, HeldOut, Message, assistant, exact, user
from ryzjax.data.synthetic.lengths import count_pieces
from ryzjax.data.synthetic.words import CITIES, COLORS, KEYS, join_words

__all__ = ["held_out_retrieval", "max_context_pieces", "retrieval"]

_SHORTEST = 24
_FIRST_LONGEST = 64
_LONGEST = 1700
_GROWS_FROM, _GROWN_AT = 0.2, 0.6
"""The parts of the run until which lists are short, and from which on they have their full length. The model learns to
look up values on short lists: with lists of up to 1,400 tokens it had not learned it after 2,000 steps, with lists of
up to 96 tokens it learned it within 100 steps."""
_LONGEST_ROW = 1950
"""The longest row in pieces, questions included. Its tokens are slightly more, and training packs rows into 2048."""
_QUESTION_PIECES = 28
_MAX_QUESTIONS = 24
_MAX_PAIRS = 345
"""Fewer than there are keys, because not every key has values in every split."""
_NOUNS = ("code", "number", "value")


@dataclass(frozen=True, kw_only=True)
class _Style:
    """How a list is written: the format of a line, and the separator between lines."""

    line: str
    separator: str


_STYLES = (
    _Style(line="- {key}: {value}", separator="\n"),
    _Style(line="The {noun} of {key} is {value}.", separator="\n"),
    _Style(line="The {noun} of {key} is {value}.", separator=" "),
    _Style(line=" {key} = {value}", separator="\n"),
    _Style(line="{noun} {key}: {value}", separator="\n"),
    _Style(line=" {key} {value}", separator=","),
)
_INTRODUCTIONS = (
    "Remember this list.",
    "Here is a list.",
    "Here are some {noun}s.",
    "Keep these {noun}s in mind.",
    "Read this list and answer my questions.",
    "Read these {noun}s.",
)
_FIRST = (
    "What is the {noun} of {key}?",
    "Which {noun} does {key} have?",
    "Tell me the {noun} of {key}.",
    "Look up {key}.",
    "Find the {noun} of {key}.",
)
_NEXT = (*_FIRST, "And {key}?", "And the {noun} of {key}?", "What about {key}?", "Now {key}.")
_SEVERAL = ("What are the {noun}s of {keys}?", "Look up {keys}.", "Tell me the {noun}s of {keys}.")


def max_context_pieces(progress: float) -> int:
    """Returns the longest list, in pieces, at a point of the run (0 to 1). It grows exponentially from 64 to 1700."""
    grown = min(1.0, max(0.0, (progress - _GROWS_FROM) / (_GROWN_AT - _GROWS_FROM)))
    return round(_FIRST_LONGEST * (_LONGEST / _FIRST_LONGEST) ** grown)


def retrieval(draw: Draw) -> ChatRow:
    """Draws a list of any length up to the longest at this point of the run, followed by questions."""
    rng = draw.rng
    longest = max_context_pieces(draw.progress)
    pieces = math.exp(rng.uniform(math.log(_SHORTEST), math.log(longest)))
    noun, style, value = rng.choice(_NOUNS), rng.choice(_STYLES), _values(rng)
    pairs = _pairs(draw, value, max(2, min(_MAX_PAIRS, _num_pairs(style, value(), round(pieces)))))
    context = _context(rng, pairs, style, noun)
    most = max(1, (_LONGEST_ROW - count_pieces(context)) // _QUESTION_PIECES)
    asked = rng.sample(pairs, min(_MAX_QUESTIONS, most, len(pairs)))
    messages: list[Message] = []
    for turn, pair in enumerate(asked):
        question, answer = _question(rng, pair, pairs, noun, _NEXT if turn else _FIRST)
        messages += [user(question if turn else _opening(rng, context, question)), assistant(answer)]
    return ChatRow(messages=messages)


def held_out_retrieval(draw: Draw, *, context_pieces: int = 1024) -> HeldOut:
    """Draws one question about a list of at least `context_pieces` pieces (up to 2000) and as many tokens."""
    rng = draw.rng
    noun, style, value = rng.choice(_NOUNS), rng.choice(_STYLES), _values(rng)
    while _num_pairs(style, value(), context_pieces) > _MAX_PAIRS:
        style, value = rng.choice(_STYLES), _values(rng)
    pairs = _pairs(draw, value, _num_pairs(style, value(), context_pieces))
    key, answer = rng.choice(pairs)
    question = rng.choice(_FIRST).format(noun=noun, key=key)
    content = _opening(rng, _context(rng, pairs, style, noun), question)
    told = _told(noun, key, answer)
    return HeldOut(messages=(user(content),), answer=told, check=exact(told))


def _values(rng: random.Random) -> Callable[[], str]:
    """Returns a function that draws values of one kind: numbers with a fixed number of digits, colors, or cities."""
    kind = rng.choice(("digits", "digits", "color", "city"))
    if kind == "digits":
        size = rng.randint(2, 4)
        return lambda: str(rng.randrange(10 ** (size - 1), 10**size))
    return lambda: rng.choice(COLORS if kind == "color" else CITIES)


def _num_pairs(style: _Style, value: str, pieces: int) -> int:
    """Returns the number of pairs that have `pieces` pieces."""
    line = style.line.format(noun="code", key="apple", value=value)
    return -(-pieces // (count_pieces(line + style.separator + line) - count_pieces(line)))


def _pairs(draw: Draw, value: Callable[[], str], count: int) -> list[tuple[str, str]]:
    """Draws pairs with different keys. Every pair belongs to the draw's split."""
    pairs: dict[str, str] = {}
    while len(pairs) < count:
        key, drawn = draw.fresh("retrieval", lambda: (draw.rng.choice(KEYS), value()))
        pairs.setdefault(key, drawn)
    return list(pairs.items())


def _context(rng: random.Random, pairs: list[tuple[str, str]], style: _Style, noun: str) -> str:
    lines = [style.line.format(noun=noun, key=key, value=value) for key, value in pairs]
    return f"{rng.choice(_INTRODUCTIONS).format(noun=noun)}\n{style.separator.join(lines)}"


def _opening(rng: random.Random, context: str, question: str) -> str:
    return f"{context}\n{question}" if rng.random() < 0.7 else f"{context}\n\n{question}"


def _question(
    rng: random.Random, pair: tuple[str, str], pairs: list[tuple[str, str]], noun: str, forms: tuple[str, ...]
) -> tuple[str, str]:
    """Draws a question about one to three pairs."""
    if len(pairs) >= 4 and rng.random() < 0.15:
        chosen = [pair, *(other for other in rng.sample(pairs, rng.randint(1, 2)) if other != pair)]
        question = rng.choice(_SEVERAL).format(noun=noun, keys=join_words([key for key, _ in chosen]))
        return question, " ".join(_told(noun, key, value) for key, value in chosen)
    key, value = pair
    return rng.choice(forms).format(noun=noun, key=key), _told(noun, key, value)


def _told(noun: str, key: str, value: str) -> str:
    return f"The {noun} of {key} is {value}."
