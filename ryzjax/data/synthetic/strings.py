"""Words letter by letter: spelling, reversing, counting, first and last letters, capitals."""

from __future__ import annotations

from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import Exchange
from ryzjax.data.synthetic.words import KEYS

__all__ = ["strings"]

_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_ASK = {
    "spell": ("Spell {word}.", "Spell the word {word}.", "How do you spell {word}?", "What are the letters of {word}?"),
    "reverse": ("Spell {word} backwards.", "Reverse the word {word}.", "What is {word} backwards?"),
    "first": ("What is the first letter of {word}?", "Which letter does {word} begin with?"),
    "last": ("What is the last letter of {word}?", "Which letter does {word} end with?"),
    "count": ("How many letters does {word} have?", "How long is the word {word}?", "Count the letters of {word}."),
    "capitals": ("Write {word} in capitals.", "Put {word} in upper case.", "What is {word} in capital letters?"),
}
_OPERATIONS = tuple(_ASK)


def strings(draw: Draw) -> Exchange:
    """Draws a question about the letters of a word, or a row of letters to reverse."""
    if draw.rng.random() < 0.3:
        return _letters(draw)
    return _word(draw)


def _word(draw: Draw) -> Exchange:
    rng = draw.rng
    operation, word = draw.fresh("strings", lambda: (rng.choice(_OPERATIONS), rng.choice(KEYS)))
    return Exchange(question=rng.choice(_ASK[operation]).format(word=word), answer=_answer(operation, word))


def _answer(operation: str, word: str) -> str:
    if operation == "spell":
        return " ".join(word)
    if operation == "reverse":
        return " ".join(reversed(word))
    if operation == "first":
        return word[0]
    if operation == "last":
        return word[-1]
    if operation == "count":
        return f"{' '.join(word)}: {len(word)}"
    return word.upper()


def _letters(draw: Draw) -> Exchange:
    rng = draw.rng
    operation, letters = draw.fresh(
        "letters",
        lambda: (rng.choice(("reverse", "copy", "first", "last")), rng.choices(_LETTERS, k=rng.randint(3, 6))),
    )
    text = " ".join(letters)
    if operation == "reverse":
        ask, answer = (
            ("Reverse: {0}", "Reverse the letters {0}", "Say this backwards: {0}"),
            " ".join(reversed(letters)),
        )
    elif operation == "copy":
        ask, answer = ("Repeat: {0}", "Repeat the letters {0}", "Say this again: {0}"), text
    elif operation == "first":
        ask, answer = ("What is the first letter of {0}?",), letters[0]
    else:
        ask, answer = ("What is the last letter of {0}?",), letters[-1]
    return Exchange(question=rng.choice(ask).format(text), answer=answer)
