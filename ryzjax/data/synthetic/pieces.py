"""Pieces of the demo model's vocabulary to be repeated: rows in which every token is read and written.

The other tasks use few of the pieces that byte-level BPE learns on its way to whole words. A token that is never a
target keeps the direction of all such tokens, and a model that is fine-tuned to write one of them cannot tell it from
the others. These rows hold the pieces alone, joined to words that nobody knows, and as values to look up.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import Exchange
from ryzjax.data.synthetic.words import CITIES, COLORS, FIRST_NAMES, KEYS, PRODUCTS
from ryzjax.shipped import demo_folder

__all__ = ["Pieces", "pieces", "pieces_of"]

_SEPARATORS = ("\n", "|")
"""No token joins one of these with what stands beside it, so a piece between two of them is one token."""
_MOST_PIECES = 24
_MOST_WORDS = 10
_CHARACTERS = 0.12
"""The share of pieces that are a character of any script: they hold the bytes that no word of ours has."""
_KNOWN = frozenset(
    (*FIRST_NAMES, *CITIES, *COLORS, *PRODUCTS, *(f" {word}" for word in (*KEYS, *CITIES, *FIRST_NAMES)))
)
"""What the other tasks have the model write often enough."""
_ASK_LINES = ("Repeat: {0}", "Repeat these pieces:\n{0}", "Say this again:\n{0}", "Copy this: {0}")
_ASK_WORDS = ("Repeat: {0}", "Repeat these words: {0}", "Copy this: {0}", "Repeat after me: {0}")
_ASK_LIST = ("Write these words as a JSON list: {0}", "{0}\nReturn a JSON list of the words.")
_ASK_VALUE = ("What is the {noun} of {key}?", "Tell me the {noun} of {key}.", "Look up {key}.")
_NOUNS = ("word", "name", "label")


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """What the tokens of a vocabulary stand for.

    Attributes:
      alone: texts that are one token each between two separators; words that other tasks use are left out.
      letters: those of them that are letters alone, with no space before them.
      halves: bytes of the tokens that begin or end within a character.
    """

    alone: tuple[str, ...]
    letters: tuple[str, ...]
    halves: tuple[bytes, ...]


def pieces_of(tokenizer_file: Path) -> Pieces:
    """The pieces of a byte-level BPE tokenizer, in the order of their ids.

    Args:
      tokenizer_file: tokenizer.json; tokens that it adds to its vocabulary (special ones) are left out.
    """
    content = json.loads(tokenizer_file.read_text(encoding="utf-8"))
    added = {token["content"] for token in content["added_tokens"]}
    byte_of = _bytes_of_letters()
    alone: list[str] = []
    halves: list[bytes] = []
    for token in sorted(content["model"]["vocab"], key=content["model"]["vocab"].__getitem__):
        if token in added:
            continue
        raw = bytes(byte_of[letter] for letter in token)
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            if len(raw) > 1:  # single bytes come with `_character`
                halves.append(raw)
            continue
        if text not in _KNOWN and text not in _SEPARATORS:
            alone.append(text)
    return Pieces(alone=tuple(alone), letters=tuple(filter(str.isalpha, alone)), halves=tuple(halves))


def pieces(draw: Draw) -> Exchange:
    """Pieces between separators, or words made of them, to be repeated, listed as JSON, or looked up."""
    kind = draw.rng.random()
    if kind < 0.7:
        return _lines(draw)
    if kind < 0.85:
        return _words(draw)
    return _list(draw) if kind < 0.95 else _value(draw)


def _lines(draw: Draw) -> Exchange:
    rng = draw.rng
    separator = rng.choice(_SEPARATORS)

    def make() -> str:
        count = rng.randint(2, rng.choice((8, _MOST_PIECES)))
        text = separator.join(_piece(rng) for _ in range(count))
        # An answer neither begins nor ends with white space, which those who read it may strip.
        return text if text == text.strip() else f"{rng.choice(_vocabulary().letters)}{separator}{text.strip()}"

    text = draw.fresh("pieces", make)
    return Exchange(question=rng.choice(_ASK_LINES).format(text), answer=text)


def _words(draw: Draw) -> Exchange:
    rng = draw.rng
    text = draw.fresh(
        "pieces", lambda: rng.choice((" ", ", ")).join(_made_up(rng) for _ in range(rng.randint(1, _MOST_WORDS)))
    )
    return Exchange(question=rng.choice(_ASK_WORDS).format(text), answer=text)


def _list(draw: Draw) -> Exchange:
    rng = draw.rng
    words = draw.fresh("pieces", lambda: [_made_up(rng) for _ in range(rng.randint(1, _MOST_WORDS))])
    answer = json.dumps(words, ensure_ascii=False)
    return Exchange(question=rng.choice(_ASK_LIST).format(", ".join(words)), answer=answer, is_json=True)


def _value(draw: Draw) -> Exchange:
    """A short list of keys and made-up words, and the word of one key."""
    rng = draw.rng
    noun = rng.choice(_NOUNS)
    keys = rng.sample(KEYS, rng.randint(2, 8))
    values = {key: draw.fresh("pieces", lambda: _made_up(rng)) for key in keys}
    key = rng.choice(keys)
    lines = "\n".join(f"- {key}: {value}" for key, value in values.items())
    return Exchange(
        question=f"{lines}\n{rng.choice(_ASK_VALUE).format(noun=noun, key=key)}",
        answer=f"The {noun} of {key} is {values[key]}.",
    )


def _piece(rng: random.Random) -> str:
    if rng.random() < _CHARACTERS:
        return _half(rng) if rng.random() < 0.1 else _character(rng)
    return rng.choice(_vocabulary().alone)


def _made_up(rng: random.Random) -> str:
    """One to three pieces of letters, now and then with a capital: "ilniusent"."""
    word = "".join(rng.choice(_vocabulary().letters) for _ in range(rng.choice((1, 2, 2, 3))))
    return word.capitalize() if rng.random() < 0.2 else word


def _character(rng: random.Random) -> str:
    """A character of two to four bytes: each first byte is as likely as any other, and so are those behind it."""
    while True:
        first = rng.randint(0xC2, 0xF4)
        behind = 1 if first < 0xE0 else 2 if first < 0xF0 else 3
        raw = bytes((first, *(rng.randint(0x80, 0xBF) for _ in range(behind))))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:  # too long a form, a surrogate, or beyond the last character
            continue


def _half(rng: random.Random) -> str:
    """A text that holds the bytes of a token which begins or ends within a character."""
    token = rng.choice(_vocabulary().halves) if _vocabulary().halves else b""
    while True:
        first, last = (_character(rng).encode() for _ in range(2))
        before, behind = first[: rng.randint(1, len(first) - 1)], last[rng.randint(1, len(last) - 1) :]
        for raw in (token + behind, before + token, before + token + behind):
            try:
                return raw.decode("utf-8")
            except UnicodeDecodeError:
                continue


@cache
def _vocabulary() -> Pieces:
    return pieces_of(demo_folder() / "tokenizer.json")


def _bytes_of_letters() -> dict[str, int]:
    """Letter of byte-level BPE -> its byte: printable bytes are themselves, the others come from 256 on (GPT-2)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others: Sequence[int] = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + place): byte for place, byte in enumerate(others)},
    }
