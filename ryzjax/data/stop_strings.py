"""Stop strings in a stream of text: found wherever the stream was cut, and never half shown."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopStringMatcher", "StopStrings"]


class StopStrings:
    """The stop strings of a request, with what a search for them needs. All completions of the request share it.

    Args:
      stops: non-empty strings.
      include: the matched string is part of the text.
    """

    def __init__(self, stops: Sequence[str], include: bool = False):
        if not all(stops):
            raise ValueError(f"stops={list(stops)!r}: a stop string is empty; it would match everywhere")
        self.stops = tuple(stops)
        self.include = include
        self.failures = tuple(map(_failure_table, self.stops))
        self.first_chars = frozenset(stop[0] for stop in self.stops)


class StopStringMatcher:
    """Watches a growing text for the first stop string.

    The first is the one that ends first (of those, the longest), so the result does not depend on how the text was
    cut into pushes. Each character costs amortised O(number of stops), however long the stops are (Knuth, Morris and
    Pratt, SIAM J. Comput. 6(2), 1977); a text in which no stop begins costs a look for their first characters.

    Args:
      strings: what to look for.
    """

    def __init__(self, strings: StopStrings):
        self._strings = strings
        # How many characters of each stop the text ends with.
        self._states = [0] * len(strings.stops)
        self._held = ""
        self._is_matched = False

    def push(self, text: str) -> tuple[str, str | None]:
        """Takes more text.

        Returns:
          (text that can be shown: it cannot be part of a stop string any more, the stop string that was found or
          None). After a match everything that follows is dropped.
        """
        if self._is_matched:
            return "", None
        if not self._held and self._strings.first_chars.isdisjoint(text):
            return text, None
        for position, char in enumerate(text):
            matched = self._advance(char)
            if matched is not None:
                self._is_matched = True
                shown = self._held + text[: position + 1]
                self._held = ""
                return (shown if self._strings.include else shown[: -len(matched)]), matched
        return self._show(text), None

    def skip(self, text: str) -> str:
        """Takes more text in which no stop string may end; one that ends after it may begin in it.

        Returns:
          text that can be shown, as `push`.
        """
        if self._is_matched:
            return ""
        if not self._held and self._strings.first_chars.isdisjoint(text):
            return text
        for char in text:
            self._advance(char)
        return self._show(text)

    def _show(self, text: str) -> str:
        """The text up to where a stop string may have begun; the rest is held back."""
        shown = self._held + text
        cut = len(shown) - max(self._states)
        self._held = shown[cut:]
        return shown[:cut]

    def flush(self) -> str:
        """The text still held back: the stream has ended, so it is no stop string."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._states)
        return held

    def _advance(self, char: str) -> str | None:
        """Moves every stop by one character; the longest that is complete, or None."""
        matched: str | None = None
        failures = self._strings.failures
        for i, stop in enumerate(self._strings.stops):
            state = self._states[i]
            while state and stop[state] != char:
                state = failures[i][state - 1]
            if stop[state] == char:
                state += 1
            if state == len(stop):
                if matched is None or len(stop) > len(matched):
                    matched = stop
                # A match that is skipped may be the beginning of the next one.
                state = failures[i][-1]
            self._states[i] = state
        return matched


def _failure_table(stop: str) -> list[int]:
    """For each prefix, the length of its longest proper suffix that is a prefix of `stop` too."""
    table = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = table[length - 1]
        if stop[i] == stop[length]:
            length += 1
        table[i] = length
    return table
