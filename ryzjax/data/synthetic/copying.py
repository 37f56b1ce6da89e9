"""Words to repeat: the simplest use of the context, on which look-up and extraction build."""

from __future__ import annotations

from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import Exchange
from ryzjax.data.synthetic.words import CITIES, COLORS, FIRST_NAMES, KEYS

__all__ = ["copying"]

_LONGEST = 24
_ASK = ("Repeat: {0}", "Repeat these words: {0}", "Say this again: {0}", "Copy this: {0}", "Repeat after me: {0}")
# A word that starts an answer has no space before it. These words are still one token there.
_FIRST = (*COLORS, *CITIES, *FIRST_NAMES)
_REST = (*_FIRST, *KEYS)


def copying(draw: Draw) -> Exchange:
    """Draws 2 to 24 random words to repeat. A word may occur more than once."""
    rng = draw.rng
    words = draw.fresh(
        "copying", lambda: (rng.choice(_FIRST), *rng.choices(_REST, k=rng.randint(1, rng.choice((4, _LONGEST - 1)))))
    )
    text = rng.choice((" ", ", ")).join(words)
    return Exchange(question=rng.choice(_ASK).format(text), answer=text)
