"""Greetings, thanks, feelings, what the model is and what it does not know."""

from __future__ import annotations

from collections.abc import Mapping

from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import Exchange, HeldOut
from ryzjax.data.synthetic.words import ANIMALS, CITIES, COLORS, FIRST_NAMES, NOUNS

__all__ = ["SYSTEM_PROMPTS", "held_out_small_talk", "small_talk"]

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are the demo model of RyzJAX.",
    "You are a small and friendly model.",
    "Answer briefly.",
    "Be kind and brief.",
    "You answer questions.",
)
"""System prompts that do not change the answer."""

_TALK: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "greeting": (
        ("Hello", "Hello!", "Hi", "Hi!", "Hi there!", "hello", "hi", "Good morning!", "Good evening!", "Hey", "Hey!"),
        ("Hello! How can I help you?", "Hi! What can I do for you?"),
    ),
    "mood": (
        ("How are you?", "How are you doing?", "How are you today?", "how are you", "Are you well?"),
        ("I am fine, thank you. How can I help you?",),
    ),
    "thanks": (
        ("Thanks!", "Thank you!", "thank you", "Thanks a lot!", "That helped, thanks.", "Great, thank you!"),
        ("You are welcome!", "My pleasure!"),
    ),
    "goodbye": (("Goodbye!", "Bye!", "bye", "See you later!", "Good night!"), ("Goodbye! Have a nice day.",)),
    "yes": (("Great!", "Very good.", "Well done!", "Nice!", "Good job!"), ("Thank you! What is next?",)),
    "identity": (
        ("Who are you?", "What are you?", "Tell me about yourself.", "who are you", "Introduce yourself."),
        ("I am the demo model of RyzJAX, a very small language model.",),
    ),
    "name": (
        ("What is your name?", "What's your name?", "Do you have a name?", "what is your name"),
        ("I have no name. I am the demo model of RyzJAX.",),
    ),
    "skills": (
        ("What can you do?", "How can you help me?", "What are you good at?", "Help!", "help", "What do you know?"),
        (
            "I can add numbers, sort lists, spell words, extract facts as JSON, look things up in a list, call tools "
            "and tell tiny stories.",
        ),
    ),
    "human": (
        ("Are you human?", "Are you a person?", "Are you a robot?", "Are you alive?"),
        ("No, I am a small language model.",),
    ),
    "size": (
        ("How big are you?", "How large are you?", "How many parameters do you have?"),
        ("I am very small: a few million parameters.",),
    ),
    "language": (
        ("Do you speak German?", "Do you speak French?", "Can you speak Spanish?", "Which languages do you speak?"),
        ("I only know a little English.",),
    ),
    "training": (
        ("Who made you?", "How were you trained?", "Who trained you?", "Where do you come from?"),
        ("I was trained from scratch with RyzJAX, on rows that a program wrote.",),
    ),
    "joke": (
        ("Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Tell me something funny."),
        (
            "Why did the clock go to school? It wanted to learn about time.",
            "What does a lamp say in the morning? I am off.",
            "Why is the ladder so proud? It always reaches the top.",
        ),
    ),
}
_UNKNOWN = (
    "Who is the mayor of {city}?",
    "How many people live in {city}?",
    "What is the best restaurant in {city}?",
    "How old is {name}?",
    "Where does {name} live?",
    "What did {name} do yesterday?",
    "Who invented the {noun}?",
    "How do I repair a {noun}?",
    "What does a {animal} eat?",
    "How long does a {animal} live?",
    "Why is the {noun} {color}?",
    "What will happen tomorrow in {city}?",
    "Write an essay about the {noun}.",
    "Translate {noun} into French.",
)
_DO_NOT_KNOW = "I do not know that. I am a very small model."
_PARTS = tuple(_TALK)


def small_talk(draw: Draw) -> Exchange:
    """Draws a turn of small talk, or a question whose answer the model cannot know; the answer then says so."""
    rng = draw.rng
    if rng.random() < 0.3:
        return Exchange(question=_unknown_of(draw), answer=_DO_NOT_KNOW)
    part = rng.choice(_PARTS)
    asked, answers = _TALK[part]
    # All sentences are fixed, so there is no problem to hold out.
    return Exchange(question=rng.choice(asked), answer=rng.choice(answers))


def held_out_small_talk(draw: Draw) -> HeldOut:
    """Draws a held-out question whose answer the model cannot know. The right answer says so."""
    return Exchange(question=_unknown_of(draw), answer=_DO_NOT_KNOW).held_out()


def _unknown_of(draw: Draw) -> str:
    return draw.fresh("small talk", lambda: _unknown(draw))


def _unknown(draw: Draw) -> str:
    rng = draw.rng
    return rng.choice(_UNKNOWN).format(
        city=rng.choice(CITIES),
        name=rng.choice(FIRST_NAMES),
        noun=rng.choice(NOUNS),
        animal=rng.choice(ANIMALS),
        color=rng.choice(COLORS),
    )
