"""Windows score each token once, and texts that cannot be read say so."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzjax.errors import ConfigError, DataError
from ryzjax.evaluation import EvaluationText, Window, sliding_windows


@st.composite
def cases(draw: st.DrawFn) -> tuple[int, int, int]:
    context = draw(st.integers(2, 40))
    return draw(st.integers(2, 300)), context, draw(st.integers(1, context - 1))


@settings(deadline=None)
@given(cases())
def test_every_token_but_the_first_is_scored_once(case: tuple[int, int, int]) -> None:
    num_tokens, context, stride = case
    windows = sliding_windows(num_tokens, context_tokens=context, stride_tokens=stride)
    targets = [token for window in windows for token in range(window.first_target, window.end)]
    assert targets == list(range(1, num_tokens))
    assert sum(window.num_targets for window in windows) == num_tokens - 1
    for window in windows:
        assert 0 <= window.begin < window.first_target < window.end <= num_tokens
        assert window.end - window.begin <= context
        # The promised context: less only in the first window.
        assert window.begin == 0 or window.first_target - window.begin >= context - stride


@settings(deadline=None)
@given(cases())
def test_the_windows_are_those_of_the_usual_loop(case: tuple[int, int, int]) -> None:
    num_tokens, context, stride = case
    expected, previous = [], 0
    for begin in range(0, num_tokens, stride):
        end = min(begin + context, num_tokens)
        # A loss over shifted labels never counts the first token of a window.
        expected.append((begin, max(previous, begin + 1), end))
        previous = end
        if end == num_tokens:
            break
    windows = sliding_windows(num_tokens, context_tokens=context, stride_tokens=stride)
    assert [(window.begin, window.first_target, window.end) for window in windows] == expected


def test_an_example() -> None:
    assert sliding_windows(10, context_tokens=4, stride_tokens=3) == (
        Window(begin=0, first_target=1, end=4),
        Window(begin=3, first_target=4, end=7),
        Window(begin=6, first_target=7, end=10),
    )


@pytest.mark.parametrize(
    ("num_tokens", "context", "stride", "error", "message"),
    [
        (10, 1, 1, ConfigError, "context_tokens=1 is too small"),
        (10, 4, 4, ConfigError, "stride_tokens=4 is out of range; expected 1 to 3"),
        (10, 4, 0, ConfigError, "stride_tokens=0 is out of range"),
        (1, 4, 2, DataError, "the text has 1 token"),
        (0, 4, 2, DataError, "the text has 0 token"),
    ],
)
def test_bad_windows(num_tokens: int, context: int, stride: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sliding_windows(num_tokens, context_tokens=context, stride_tokens=stride)


def test_a_text_and_its_hash(tmp_path: Path) -> None:
    raw = "Zwölf\r\nBoxkämpfer\n".encode()
    (tmp_path / "a.txt").write_bytes(raw)
    text = EvaluationText.read(tmp_path / "a.txt")
    assert text.text == "Zwölf\r\nBoxkämpfer\n"
    assert (text.num_bytes, text.sha256) == (len(raw), hashlib.sha256(raw).hexdigest())


@pytest.mark.parametrize(
    ("raw", "message"),
    [(None, "cannot be read"), (b"", "is empty"), (b"abc\xff", r"not UTF-8 \(byte 3\)")],
)
def test_bad_files(tmp_path: Path, raw: bytes | None, message: str) -> None:
    path = tmp_path / "a.txt"
    if raw is not None:
        path.write_bytes(raw)
    with pytest.raises(DataError, match=message):
        EvaluationText.read(path)


def test_bad_text() -> None:
    with pytest.raises(DataError, match="lone surrogate at position 1"):
        EvaluationText.of("a\ud800")
