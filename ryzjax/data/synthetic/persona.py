"""Names that a system prompt or an earlier turn gives, and questions that ask for them later."""

from __future__ import annotations

from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import ChatRow, Exchange, HeldOut, Message, assistant, exact, user
from ryzjax.data.synthetic.words import FIRST_NAMES, LAST_NAMES

__all__ = ["held_out_persona", "persona"]

_MODEL_SYSTEM = ("Your name is {name}.", "You are {name}, a helpful assistant.", "You are {name}. Answer briefly.")
_USER_SYSTEM = ("The user is called {name}.", "You are talking to {name}.", "The name of the user is {name}.")
_SAID = ("My name is {name}.", "Hello, I am {name}.", "Hi, I'm {name}!", "I am {name}.", "Call me {name}.")
_ASK_MODEL = ("What is your name?", "Who are you?", "What's your name?")
_ASK_USER = ("What is my name?", "Do you know my name?", "Who am I?", "What's my name?")


def persona(draw: Draw) -> ChatRow:
    """Draws a conversation that gives a name and asks for it."""
    messages, question, answer = _drawn(draw)
    return ChatRow(messages=[*messages, *Exchange(question=question, answer=answer).messages()])


def held_out_persona(draw: Draw) -> HeldOut:
    """Draws an item with a name that no training row of this kind gives."""
    messages, question, answer = _drawn(draw)
    return HeldOut(messages=(*messages, user(question)), answer=answer, check=exact(answer))


def _drawn(draw: Draw) -> tuple[list[Message], str, str]:
    rng = draw.rng
    name = draw.fresh("persona", lambda: rng.choice((*FIRST_NAMES, *LAST_NAMES)))
    kind = rng.random()
    if kind < 0.35:
        system = rng.choice(_MODEL_SYSTEM).format(name=name)
        return [{"role": "system", "content": system}], rng.choice(_ASK_MODEL), f"My name is {name}."
    if kind < 0.6:
        system = rng.choice(_USER_SYSTEM).format(name=name)
        return [{"role": "system", "content": system}], rng.choice(_ASK_USER), f"Your name is {name}."
    said = rng.choice(_SAID).format(name=name)
    greeting = f"Hello {name}! How can I help you?"
    return [user(said), assistant(greeting)], rng.choice(_ASK_USER), f"Your name is {name}."
