"""Words to be said again: the plainest use of what stands in the context, which looking up and extracting build on."""

from __future__ import annotations

from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import Exchange
from ryzjax.data.synthetic.words import CITIES, COLORS, FIRST_NAMES, KEYS

__all__ = ["copying"]

_LONGEST = 24
_ASK = ("Repeat: {0}", "Repeat these words: {0}", "Say this again: {0}", "Copy this: {0}", "Repeat after me: {0}")
# A word that begins an answer has no space before it, and is one token all the same.
_FIRST = (*COLORS, *CITIES, *FIRST_NAMES)
_REST = (*_FIRST, *KEYS)


def copying(draw: Draw) -> Exchange:
    """Two to 24 words in no order, to be repeated; some of them may come twice."""
    rng = draw.rng
    words = draw.fresh(
        "copying", lambda: (rng.choice(_FIRST), *rng.choices(_REST, k=rng.randint(1, rng.choice((4, _LONGEST - 1)))))
    )
    text = rng.choice((" ", ", ")).join(words)
    return Exchange(question=rng.choice(_ASK).format(text), answer=text)
