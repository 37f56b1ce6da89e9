"""A task for fine-tuning the demo model, which is not trained on it: sending messages of a help desk to queues.

`write_jsonl(path, routing_rows(...))` writes the files that a user would have.
"""

from __future__ import annotations

import random
from collections.abc import Mapping

from ryzjax.data.synthetic.draw import Draw, Split
from ryzjax.data.synthetic.exchange import ChatRow, Exchange
from ryzjax.data.synthetic.words import CITIES, FIRST_NAMES, PRODUCTS

__all__ = ["QUEUES", "routing", "routing_rows"]

QUEUES: Mapping[str, tuple[str, ...]] = {
    "billing": (
        "my bill for the {product} is wrong",
        "I paid twice for my {product}",
        "the price of the {product} on my bill is too high",
        "I did not get my money back for the {product}",
    ),
    "delivery": (
        "my {product} did not arrive in {city}",
        "the parcel with my {product} is late",
        "my {product} were sent to {city} by mistake",
        "I have been waiting for my {product} for a week",
    ),
    "repair": (
        "my {product} are broken",
        "the {product} do not work",
        "a part of my {product} fell off",
        "the {product} stopped working in {city}",
    ),
    "account": (
        "I cannot log in from {city}",
        "I forgot my password",
        "please change my name to {name}",
        "I have a new address in {city}",
    ),
    "sales": (
        "I would like to know if you have {product}",
        "I want to buy {product} for {name}",
        "I want to order {product} to {city}",
        "tell me when new {product} are in the shop",
    ),
}
"""The texts of the messages for each queue."""

_GREETINGS = ("Hello, ", "Hi, ", "Good morning, ", "Dear team, ", "I am {name}. ", "")
_ENDINGS = (".", "!", ". Thank you.", ". Please help me.")
_URGENT = (" It is urgent.", " I need an answer today.", " Please hurry.")


def routing(draw: Draw) -> Exchange:
    """Draws a message. The answer is its queue and its urgency, such as "billing, urgent" or "billing, normal"."""
    rng = draw.rng
    queue = rng.choice(tuple(QUEUES))
    urgent = rng.random() < 0.4
    message = draw.fresh("routing", lambda: _message(rng, queue, urgent))
    return Exchange(question=f"Route this message: {message}", answer=f"{queue}, {'urgent' if urgent else 'normal'}")


def routing_rows(*, seed: int, count: int, split: Split = "train") -> list[ChatRow]:
    """Rows to fine-tune on, or to test on; the same for the same arguments."""
    rng = random.Random(f"routing {split} {seed}")
    draw = Draw(rng=rng, split=split)
    return [ChatRow(messages=routing(draw).messages()) for _ in range(count)]


def _message(rng: random.Random, queue: str, urgent: bool) -> str:
    text = rng.choice(_GREETINGS) + rng.choice(QUEUES[queue]) + rng.choice(_ENDINGS)
    if urgent:
        text += rng.choice(_URGENT)
    text = text.format(product=rng.choice(PRODUCTS), city=rng.choice(CITIES), name=rng.choice(FIRST_NAMES))
    # Each sentence starts with a capital letter, also after "I am Ada. ".
    return ". ".join(part[:1].upper() + part[1:] for part in text.split(". "))
