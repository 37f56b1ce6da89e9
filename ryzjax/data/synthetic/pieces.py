"""Rows that repeat pieces of the demo model's vocabulary, so that the model reads and writes every token.

The other tasks use few of the pieces that byte-level BPE learns on its way to whole words. The embeddings of tokens
that are never a target all keep the same direction, and a model that is fine-tuned to write one of these tokens cannot
tell it from the others. These rows contain the pieces alone, joined into invented words, and as values to look up.
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
"""No token contains one of these together with other characters, so a piece between two of them is one token."""
_MOST_PIECES = 24
_MOST_WORDS = 10
_CHARACTERS = 0.12
"""The share of pieces that are a character of any script. They contain the bytes that no word of ours has."""
_KNOWN = frozenset(
    (*FIRST_NAMES, *CITIES, *COLORS, *PRODUCTS, *(f" {word}" for word in (*KEYS, *CITIES, *FIRST_NAMES)))
)
"""The words that the model writes often enough in the other tasks."""
_ASK_LINES = ("Repeat: {0}", "Repeat these pieces:\n{0}", "Say this again:\n{0}", "Copy this: {0}")
_ASK_WORDS = ("Repeat: {0}", "Repeat these words: {0}", "Copy this: {0}", "Repeat after me: {0}")
_ASK_LIST = ("Write these words as a JSON list: {0}", "{0}\nReturn a JSON list of the words.")
_ASK_VALUE = ("What is the {noun} of {key}?", "Tell me the {noun} of {key}.", "Look up {key}.")
_NOUNS = ("word", "name", "label")


@dataclass(frozen=True, kw_only=True)
class Pieces:
    """The texts and bytes of the tokens of a vocabulary.

    Attributes:
      alone: the texts that are one token between two separators, without the words that other tasks use.
      letters: those of `alone` that have only letters and no space before them.
      halves: the bytes of the tokens that start or end inside a character.
    """

    alone: tuple[str, ...]
    letters: tuple[str, ...]
    halves: tuple[bytes, ...]


def pieces_of(tokenizer_file: Path) -> Pieces:
    """Returns the pieces of a byte-level BPE tokenizer, in the order of their ids.

    Args:
      tokenizer_file: tokenizer.json. Its added tokens, which include the special ones, are left out.
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
            if len(raw) > 1:  # `_character` covers the single bytes.
                halves.append(raw)
            continue
        if text not in _KNOWN and text not in _SEPARATORS:
            alone.append(text)
    return Pieces(alone=tuple(alone), letters=tuple(filter(str.isalpha, alone)), halves=tuple(halves))


def pieces(draw: Draw) -> Exchange:
    """Draws pieces between separators, or words made of pieces, to repeat, to list as JSON, or to look up."""
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
        # An answer neither starts nor ends with white space, because a reader may strip it.
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
    """Draws a short list of keys with invented words, and asks for the word of one key."""
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
    """Joins one to three pieces of letters, sometimes with a capital, such as "ilniusent"."""
    word = "".join(rng.choice(_vocabulary().letters) for _ in range(rng.choice((1, 2, 2, 3))))
    return word.capitalize() if rng.random() < 0.2 else word


def _character(rng: random.Random) -> str:
    """Draws a character of two to four bytes. Every first byte is equally likely, and so is every continuation byte."""
    while True:
        first = rng.randint(0xC2, 0xF4)
        behind = 1 if first < 0xE0 else 2 if first < 0xF0 else 3
        raw = bytes((first, *(rng.randint(0x80, 0xBF) for _ in range(behind))))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:  # an overlong form, a surrogate, or a code point above the last one
            continue


def _half(rng: random.Random) -> str:
    """Draws a text with the bytes of a token that starts or ends inside a character."""
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
    """Maps the letters of byte-level BPE to bytes: printable bytes are themselves, the others start at 256 (GPT-2)."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others: Sequence[int] = [byte for byte in range(256) if byte not in printable]
    return {
        **{chr(byte): byte for byte in printable},
        **{chr(256 + place): byte for place, byte in enumerate(others)},
    }
