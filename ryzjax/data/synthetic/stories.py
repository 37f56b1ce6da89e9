"""Tiny stories from a grammar: an animal, a thing, a place, a problem and its end."""

from __future__ import annotations

from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import Check, Exchange, HeldOut, user
from ryzjax.data.synthetic.words import ADJECTIVES, ANIMALS, FIRST_NAMES, words_of

__all__ = ["held_out_story", "story", "tells_of"]

_THINGS = words_of(
    "ball basket bell book boat box button candle coin crown drum feather flower flute hat key kite lamp lantern "
    "letter map mirror pebble ribbon ring rope scarf shell shoe spoon star stone umbrella whistle"
)
_PLACES = (
    "by the river",
    "in the forest",
    "on the hill",
    "near the lake",
    "in the garden",
    "under the old oak",
    "at the beach",
    "in the valley",
    "behind the mill",
    "by the bridge",
    "in the meadow",
    "at the market",
)
_ASK = (
    "Tell me a story about a {animal} and a {thing}.",
    "Tell a story with a {animal} and a {thing}.",
    "Write a tiny story about a {animal} and a {thing}.",
    "Can you tell me a story about a {animal} and a {thing}?",
    "A story about a {animal} and a {thing}, please.",
)
_OPENINGS = (
    "Once upon a time there was a {adjective} {animal} named {name}.",
    "Once there lived a {adjective} {animal} named {name}.",
    "{name} was a {adjective} {animal}.",
)
_FINDS = (
    "One day {name} found a {thing} {place}.",
    "One morning {name} saw a {thing} {place}.",
    "One evening {name} found a {thing} {place}.",
)
_TROUBLES = (
    '"Whose {thing} is this?" asked {name}.',
    "{name} did not know whose {thing} it was.",
    "The {thing} was broken, and {name} was sad.",
    "{name} wanted to keep the {thing}, but it belonged to somebody.",
)
_HELPS = (
    'Then {friend} came along and said: "That is my {thing}! I lost it yesterday."',
    "A {other} named {friend} had lost it and was looking for it everywhere.",
    "{name} met a {other} named {friend}, who was looking for the {thing}.",
)
_ENDS = (
    "{name} gave the {thing} back, and {friend} smiled. From that day on they were friends.",
    "{name} gave it to {friend}. They played until the sun went down.",
    "So {name} gave the {thing} to {friend}, and they went home together.",
    "{friend} was very happy and thanked {name}. They became the best of friends.",
)


def story(draw: Draw) -> Exchange:
    """Draws a story of five sentences about an animal and a thing."""
    return _told(draw, *_plot(draw))


def held_out_story(draw: Draw) -> HeldOut:
    """Draws an animal and a thing that no training story combines. A complete story with both is right."""
    animal, thing = _plot(draw)
    told = _told(draw, animal, thing)
    return HeldOut(messages=(user(told.question),), answer=told.answer, check=tells_of(animal, thing))


def _plot(draw: Draw) -> tuple[str, str]:
    return draw.fresh("story", lambda: (draw.rng.choice(ANIMALS), draw.rng.choice(_THINGS)))


def _told(draw: Draw, animal: str, thing: str) -> Exchange:
    rng = draw.rng
    name, friend = rng.sample(FIRST_NAMES, 2)
    parts = (rng.choice(part) for part in (_OPENINGS, _FINDS, _TROUBLES, _HELPS, _ENDS))
    text = " ".join(parts).format(
        name=name,
        friend=friend,
        animal=animal,
        thing=thing,
        other=rng.choice([other for other in ANIMALS if other != animal]),
        adjective=rng.choice(ADJECTIVES),
        place=rng.choice(_PLACES),
    )
    ask = rng.choice(_ASK).format(animal=animal, thing=thing)
    return Exchange(question=_articles(ask), answer=_articles(text))


def tells_of(animal: str, thing: str) -> Check:
    """Returns a check that accepts a complete text of at least four sentences with both words."""

    def check(text: str) -> bool:
        text = text.strip()
        return f" {animal}" in text and f" {thing}" in text and text[-1:] == "." and text.count(".") >= 4

    return check


def _articles(text: str) -> str:
    """Replaces "a" by "an" where it is needed: "a owl" becomes "an owl"."""
    for vowel in "aeiou":
        text = text.replace(f" a {vowel}", f" an {vowel}").replace(f"A {vowel}", f"An {vowel}")
    return text.replace("an uni", "a uni")
