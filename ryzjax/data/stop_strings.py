"""Finds stop strings in a stream of text, however the stream is cut, and never shows part of one."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["StopStringMatcher", "StopStrings"]


class StopStrings:
    """The stop strings of a request, prepared for the search. All completions of the request share one instance.

    Args:
      stops: non-empty strings.
      include: whether the matched string is part of the text.
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

    The first stop string is the one that ends first. If several end at the same character, it is the longest. The
    result therefore does not depend on how the text is cut into pushes. A character takes amortized time proportional
    to the number of stop strings, whatever their lengths (Knuth, Morris and Pratt, SIAM J. Comput. 6(2), 1977). A text
    that has none of their first characters takes one set comparison.

    Args:
      strings: the stop strings.
    """

    def __init__(self, strings: StopStrings):
        self._strings = strings
        # For each stop string, the number of its characters that the text ends with.
        self._states = [0] * len(strings.stops)
        self._held = ""
        self._is_matched = False

    def push(self, text: str) -> tuple[str, str | None]:
        """Adds text.

        Returns:
          The text that can be shown, because it cannot be part of a stop string any more; and the stop string that was
          found, or None. All text after a match is dropped.
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
        """Adds text in which no stop string may end. A stop string that ends later may start in it.

        Returns:
          The text that can be shown, as for `push`.
        """
        if self._is_matched:
            return ""
        if not self._held and self._strings.first_chars.isdisjoint(text):
            return text
        for char in text:
            self._advance(char)
        return self._show(text)

    def _show(self, text: str) -> str:
        """Returns the text up to where a stop string may have started, and holds back the rest."""
        shown = self._held + text
        cut = len(shown) - max(self._states)
        self._held = shown[cut:]
        return shown[:cut]

    def flush(self) -> str:
        """Returns the text that is held back. The stream has ended, so it is not a stop string."""
        held, self._held = self._held, ""
        self._states = [0] * len(self._states)
        return held

    def _advance(self, char: str) -> str | None:
        """Advances every stop string by one character. Returns the longest that is complete, or None."""
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
                # A skipped match may be the start of the next one.
                state = failures[i][-1]
            self._states[i] = state
        return matched


def _failure_table(stop: str) -> list[int]:
    """Returns, for each prefix of `stop`, the length of its longest proper suffix that is also a prefix of `stop`."""
    table = [0] * len(stop)
    length = 0
    for i in range(1, len(stop)):
        while length and stop[i] != stop[length]:
            length = table[length - 1]
        if stop[i] == stop[length]:
            length += 1
        table[i] = length
    return table
