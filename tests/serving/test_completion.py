"""CompletionStream: `min_tokens` suppresses stop strings, however tokens and text are cut."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ryzjax import LLM, SamplingParams
from ryzjax.data.stop_strings import StopStrings
from ryzjax.serving.frontend.completion import CompletionStream
from ryzjax.serving.messages.request import TokenEvent


class Bytes:
    """A tokenizer with one token per byte."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(ids).decode(errors="replace")


def complete(text: bytes, cuts: Sequence[int], **settings: object) -> tuple[str, str | int | None, int]:
    """Returns the text, the stop reason and the number of tokens used.

    The tokens arrive in events of the sizes `cuts`, and the rest in a last event.
    """
    params = SamplingParams(max_tokens=None, **settings)  # type: ignore[arg-type]
    stops = StopStrings(tuple(params.stop), params.include_stop_str_in_output)
    stream = CompletionStream(0, Bytes(), params, stops, ())  # type: ignore[arg-type]
    shown, used = "", 0
    while not stream.is_finished:
        size = cuts[0] if cuts else len(text)
        cuts, tokens, text = cuts[1:], text[:size], text[size:]
        reason = None if text else "length"
        delta = stream.push(TokenEvent(request_id="r", token_ids=tuple(tokens), finish_reason=reason))
        shown, used = shown + delta.text, used + len(tokens)
    return shown, delta.stop_reason, used


@pytest.mark.parametrize(
    ("min_tokens", "shown", "reason"),
    [
        (0, "a", "END"),
        (3, "a", "END"),
        # The stop string is complete with the fourth token, which is still one of the first four.
        (4, "aENDb", "END"),
        (5, "aENDb", "END"),
        # This stop string starts in the text of the first seven tokens and ends after it.
        (7, "aENDb", "END"),
        (8, "aENDbENDc", None),
    ],
)
@pytest.mark.parametrize("cuts", [[1] * 9, [], [2, 5]])
def test_a_stop_string_counts_after_min_tokens(
    min_tokens: int, shown: str, reason: str | None, cuts: list[int]
) -> None:
    found = complete(b"aENDbENDc", cuts, stop=["END"], min_tokens=min_tokens)
    assert found[:2] == (shown, reason)
    included = complete(b"aENDbENDc", cuts, stop=["END"], min_tokens=min_tokens, include_stop_str_in_output=True)
    assert included[:2] == (shown + (reason or ""), reason)


def test_what_is_left_at_the_end_is_not_matched_within_min_tokens() -> None:
    # The last byte alone is not a character. It is shown as U+FFFD when the sequence ends.
    broken = "\ufffd"
    assert complete(b"ab\xc3", [1, 1, 1], stop=[broken], min_tokens=3)[:2] == (f"ab{broken}", None)
    assert complete(b"ab\xc3", [1, 1, 1], stop=[broken], min_tokens=2)[:2] == ("ab", broken)


@given(
    text=st.text(alphabet="abé", min_size=1, max_size=12),
    stops=st.lists(st.text(alphabet="abé", min_size=1, max_size=3), min_size=1, max_size=3),
    min_tokens=st.integers(0, 14),
    cuts=st.lists(st.integers(1, 4), max_size=12),
)
def test_how_tokens_come_does_not_matter(text: str, stops: list[str], min_tokens: int, cuts: list[int]) -> None:
    tokens = text.encode()
    one_by_one = complete(tokens, [1] * len(tokens), stop=stops, min_tokens=min_tokens)
    assert complete(tokens, cuts, stop=stops, min_tokens=min_tokens)[:2] == one_by_one[:2]
    if one_by_one[1] is not None:
        assert one_by_one[2] > min_tokens


async def test_whole_and_streamed(tiny_llm: LLM) -> None:
    engine = tiny_llm.engine
    free = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    whole = (await engine.generate([5, 6, 7], free)).outputs[0].text
    stop = whole[:2]
    held = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop=[stop], min_tokens=12)
    output = (await engine.generate([5, 6, 7], held)).outputs[0]
    assert len(output.token_ids) > 12
    assert output.text and whole.startswith(output.text)
    deltas = [delta async for delta in engine.stream([5, 6, 7], held)]
    assert "".join(delta.text for delta in deltas) == output.text
    assert deltas[-1].stop_reason == output.stop_reason
    early = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, stop=[stop])
    stopped = (await engine.generate([5, 6, 7], early)).outputs[0]
    assert (stopped.text, stopped.stop_reason) == ("", stop)
    assert engine.num_open == 0
