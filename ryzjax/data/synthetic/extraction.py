"""Sentences that contain facts, and the facts as JSON with the requested keys."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import Exchange
from ryzjax.data.synthetic.words import (
    CITIES,
    COLORS,
    FIRST_NAMES,
    LAST_NAMES,
    MONTHS,
    PRODUCTS,
    invented_word,
    join_words,
)

__all__ = ["extraction"]

Facts = Mapping[str, "str | int | float"]

_INVENTED = 0.05
"""The share of invented names and cities, so that the model learns to copy words that it does not know."""
_CENTS = ("15", "25", "45", "49", "75", "85", "95", "99")
_ASK = (
    "Extract the {keys} as JSON: {text}",
    "Extract {keys} as JSON.\n{text}",
    "Return JSON with the keys {keys}.\n{text}",
    "{text}\nGive me the {keys} as JSON.",
    "{text}\nExtract {keys} as JSON.",
    "Turn this into JSON with {keys}: {text}",
    "Write the {keys} of this text as JSON: {text}",
)


@dataclass(frozen=True, kw_only=True)
class _Form:
    """A kind of text: its facts, and sentences that contain all of them."""

    name: str
    facts: Callable[[random.Random], Facts]
    sentences: tuple[str, ...]


def extraction(draw: Draw) -> Exchange:
    """Draws one or two sentences, and some of their facts as JSON in the requested order."""
    rng = draw.rng
    form = rng.choice(_FORMS)
    facts = draw.fresh("extraction", lambda: form.facts(rng), key=lambda facts: (form.name, tuple(facts.values())))
    keys = list(facts)
    if rng.random() < 0.4:
        rng.shuffle(keys)
    if rng.random() < 0.4:
        keys = keys[: rng.randint(2, len(keys))]
    text = rng.choice(form.sentences).format(**facts)
    question = rng.choice(_ASK).format(keys=join_words(keys), text=text)
    answer = json.dumps({key: facts[key] for key in keys}, ensure_ascii=False)
    return Exchange(question=question, answer=answer, is_json=True)


def _full_name(rng: random.Random) -> str:
    if rng.random() < _INVENTED:
        return f"{invented_word(rng).capitalize()} {invented_word(rng).capitalize()}"
    return f"{rng.choice(FIRST_NAMES)} {rng.choice(LAST_NAMES)}"


def _first_name(rng: random.Random) -> str:
    return invented_word(rng).capitalize() if rng.random() < _INVENTED else rng.choice(FIRST_NAMES)


def _city(rng: random.Random) -> str:
    return invented_word(rng).capitalize() if rng.random() < _INVENTED else rng.choice(CITIES)


def _price(rng: random.Random) -> float:
    return float(f"{rng.randint(1, 99)}.{rng.choice(_CENTS)}")


def _date(rng: random.Random) -> str:
    return f"{rng.randint(1, 28)} {rng.choice(MONTHS)} {rng.randint(1990, 2039)}"


def _time(rng: random.Random) -> str:
    return f"{rng.randint(8, 19)}:{rng.choice(('00', '15', '30', '45'))}"


def _person(rng: random.Random) -> Facts:
    return {"name": _full_name(rng), "age": rng.randint(18, 90), "city": _city(rng)}


def _order(rng: random.Random) -> Facts:
    return {"name": _first_name(rng), "product": rng.choice(PRODUCTS), "quantity": rng.randint(2, 60)}


def _sale(rng: random.Random) -> Facts:
    return {
        "product": rng.choice(PRODUCTS),
        "color": rng.choice(COLORS),
        "quantity": rng.randint(2, 60),
        "price": _price(rng),
    }


def _meeting(rng: random.Random) -> Facts:
    return {"name": _first_name(rng), "date": _date(rng), "time": _time(rng), "city": _city(rng)}


def _trip(rng: random.Random) -> Facts:
    start, end = rng.sample(CITIES, 2)
    return {"from": start, "to": end, "date": _date(rng)}


def _contact(rng: random.Random) -> Facts:
    name = _first_name(rng)
    return {"name": name, "email": f"{name.lower()}@{invented_word(rng)}.example", "city": _city(rng)}


_FORMS = (
    _Form(
        name="person",
        facts=_person,
        sentences=(
            "{name} is {age} years old and lives in {city}.",
            "{name}, {age}, lives in {city}.",
            "My name is {name}. I am {age} years old and I live in {city}.",
            "In {city} I met {name}, who is {age}.",
            "{name} from {city} turned {age} last week.",
        ),
    ),
    _Form(
        name="order",
        facts=_order,
        sentences=(
            "{name} ordered {quantity} {product}.",
            "{name} would like to buy {quantity} {product}.",
            "Please send {quantity} {product} to {name}.",
            "We packed {quantity} {product} for {name} this morning.",
        ),
    ),
    _Form(
        name="sale",
        facts=_sale,
        sentences=(
            "We sold {quantity} {color} {product} for {price} dollars each.",
            "The shop has {quantity} {color} {product} at {price} dollars.",
            "{quantity} {color} {product} cost {price} dollars each.",
            "Yesterday somebody bought {quantity} {color} {product} and paid {price} dollars for each.",
        ),
    ),
    _Form(
        name="meeting",
        facts=_meeting,
        sentences=(
            "The meeting with {name} is on {date} at {time} in {city}.",
            "{name} will be in {city} on {date} at {time}.",
            "Let us meet {name} at {time} on {date} in {city}.",
            "On {date} at {time}, {name} gives a talk in {city}.",
        ),
    ),
    _Form(
        name="trip",
        facts=_trip,
        sentences=(
            "The train from {from} to {to} leaves on {date}.",
            "On {date} we fly from {from} to {to}.",
            "I need a ticket from {from} to {to} for {date}.",
            "She travels to {to} on {date}. Her trip starts in {from}.",
        ),
    ),
    _Form(
        name="contact",
        facts=_contact,
        sentences=(
            "You can reach {name} in {city} at <{email}>.",
            "{name} lives in {city}. Write to <{email}>.",
            "Contact: {name} <{email}>, {city}",
            "Send the letter for {name} <{email}> to {city}.",
        ),
    ),
)
