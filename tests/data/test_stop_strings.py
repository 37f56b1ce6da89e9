"""Stop strings are found wherever the text is cut, and no part of one is ever shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzjax.data.stop_strings import StopStringMatcher, StopStrings


def run(matcher: StopStringMatcher, pieces: list[str]) -> tuple[str, str | None]:
    shown = ""
    for piece in pieces:
        text, matched = matcher.push(piece)
        shown += text
        if matched is not None:
            return shown, matched
    return shown + matcher.flush(), None


def first_stop(text: str, stops: list[str]) -> tuple[int, str] | None:
    """Returns (start, stop) of the match that ends first, and of the longest such match. This is the definition."""
    found = [(text.find(stop) + len(stop), -len(stop), stop) for stop in stops if stop in text]
    if not found:
        return None
    end, _, stop = min(found)
    return end - len(stop), stop


def test_holds_back_what_may_become_a_stop():
    matcher = StopStringMatcher(StopStrings(["</s>", "STOP"]))
    assert matcher.push("hello <") == ("hello ", None)
    assert matcher.push("/") == ("", None)
    assert matcher.push("b>") == ("</b>", None)
    assert matcher.push("ST") == ("", None)
    assert matcher.push("OP and more") == ("", "STOP")
    assert matcher.push("ignored") == ("", None)
    assert matcher.flush() == ""


def test_flush_gives_what_was_held_back():
    matcher = StopStringMatcher(StopStrings(["END"]))
    assert matcher.push("the EN") == ("the ", None)
    assert matcher.flush() == "EN"
    assert matcher.flush() == ""


def test_include():
    matcher = StopStringMatcher(StopStrings(["END"], include=True))
    assert matcher.push("a E") == ("a ", None)
    assert matcher.push("ND b") == ("END", "END")


def test_self_overlapping_stop():
    assert run(StopStringMatcher(StopStrings(["aab"])), list("aaaab!")) == ("aa", "aab")
    assert run(StopStringMatcher(StopStrings(["abab"])), ["aba", "cab", "abab"]) == ("abac", "abab")


def test_ends_first_wins_and_then_the_longest():
    assert run(StopStringMatcher(StopStrings(["abcd", "bc"])), ["abcd"]) == ("a", "bc")
    assert run(StopStringMatcher(StopStrings(["c", "abc"])), ["xabc"]) == ("x", "abc")


def test_without_stops_everything_passes():
    assert run(StopStringMatcher(StopStrings([])), ["a", "", "b"]) == ("ab", None)


def test_empty_stop_is_refused():
    with pytest.raises(ValueError, match="empty"):
        StopStrings([""])


def test_a_very_long_stop_is_cheap():
    matcher = StopStringMatcher(StopStrings(["a" * 200_000 + "b"]))
    shown, matched = run(matcher, ["a" * 1000] * 100)
    assert (len(shown), matched) == (100_000, None)


words = st.text(alphabet="ab😀", max_size=12)


@given(
    pieces=st.lists(words, max_size=8),
    stops=st.lists(st.text(alphabet="ab😀", min_size=1, max_size=4), max_size=4),
    include=st.booleans(),
)
def test_equals_the_definition_however_the_text_is_cut(pieces: list[str], stops: list[str], include: bool):
    text = "".join(pieces)
    found = first_stop(text, stops)
    expected = (text, None)
    if found is not None:
        start, stop = found
        expected = (text[: start + len(stop)] if include else text[:start], stop)
    assert run(StopStringMatcher(StopStrings(stops, include)), pieces) == expected
    assert run(StopStringMatcher(StopStrings(stops, include)), list(text)) == expected


def test_no_match_in_skipped_text_but_one_that_ends_after_it():
    matcher = StopStringMatcher(StopStrings(["END", "D!"]))
    assert matcher.skip("an END, an EN") == "an END, an "
    assert matcher.push("D") == ("", "END")
    matcher = StopStringMatcher(StopStrings(["aa"]))
    assert matcher.skip("aa") == "a"
    assert matcher.push("a") == ("", "aa")
    assert StopStringMatcher(StopStrings([])).skip("text") == "text"


@given(
    skipped=st.lists(st.text(alphabet="ab", max_size=5), max_size=4),
    pieces=st.lists(st.text(alphabet="ab", max_size=5), max_size=4),
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_skipping_is_the_definition(skipped: list[str], pieces: list[str], stops: list[str]):
    matcher = StopStringMatcher(StopStrings(stops))
    text = "".join((*skipped, *pieces))
    begin = len("".join(skipped))
    ends = [
        (end, -len(stop), stop)
        for stop in stops
        for end in range(max(begin + 1, len(stop)), len(text) + 1)
        if text[:end].endswith(stop)
    ]
    shown = "".join(matcher.skip(piece) for piece in skipped)
    rest, matched = run(matcher, pieces)
    if not ends:
        assert (shown + rest, matched) == (text, None)
    else:
        end, _, stop = min(ends)
        assert (shown + rest, matched) == (text[: end - len(stop)], stop)
