"""Packing and batches: no token is lost or repeated, and every target is the next token."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ryzjax.data.training.batch import Segment, cut_into_rows, make_batch, segment_of
from ryzjax.data.training.example import Example
from ryzjax.data.training.packing import pack
from ryzjax.data.training.permutation import permuted

CAPACITY = 16


def examples(lengths: list[int], seed: int) -> list[Example]:
    """Returns examples whose tokens count up from 1 over all of them."""
    rng = np.random.default_rng(seed)
    starts = np.cumsum([1, *lengths])
    return [
        Example(
            token_ids=np.arange(start, start + length, dtype=np.int32),
            trained=np.concatenate([[False], rng.random(length - 1) < 0.5]),
        )
        for start, length in zip(starts[:-1], lengths, strict=True)
    ]


lengths_lists = st.lists(st.integers(1, CAPACITY), min_size=1, max_size=40)


@given(lengths_lists)
def test_bins(lengths: list[int]) -> None:
    bins = pack(lengths, CAPACITY)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in members) <= CAPACITY for members in bins)
    assert bins == sorted(sorted(members) for members in bins)
    # Any two bins together hold more than one bin can. Otherwise the second would not have been opened.
    sums = sorted(sum(lengths[i] for i in members) for members in bins)
    assert len(sums) < 2 or sums[0] + sums[1] > CAPACITY


def test_best_fit_by_hand() -> None:
    assert pack([4, 8, 7, 3, 9, 1], 16) == [[0, 1, 3, 5], [2, 4]]
    assert pack([9, 8, 7], 16) == [[0, 2], [1]]


@given(lengths_lists, st.integers(0, 100), st.integers(0, 3))
@settings(deadline=None)
def test_packed_batches(lengths: list[int], seed: int, extra: int) -> None:
    made = examples(lengths, seed)
    bins = pack(lengths, CAPACITY)
    rows = [[segment_of(made[i], i) for i in members] for members in bins]
    batch = make_batch(rows, num_rows=len(rows) + extra, sequence_tokens=CAPACITY)
    assert all(array.shape == (len(rows) + extra, CAPACITY) for array in batch)
    assert [a.dtype for a in batch] == [np.int32, np.int32, np.int32, np.int32, np.float32]
    for row, members in enumerate(bins):
        numbers = [n for n, i in enumerate(members, 1) for _ in range(lengths[i])]
        assert batch.segment_ids[row].tolist() == numbers + [0] * (CAPACITY - len(numbers))
        for number, i in enumerate(members, 1):
            where = batch.segment_ids[row] == number
            ids = made[i].token_ids.tolist()
            assert batch.token_ids[row, where].tolist() == ids
            assert batch.positions[row, where].tolist() == list(range(lengths[i]))
            assert batch.targets[row, where].tolist() == [*ids[1:], 0]
            assert batch.loss_weights[row, where].tolist() == [*made[i].trained[1:].astype(float), 0.0]
    empty = batch.segment_ids == 0
    assert all(not array[empty].any() for array in batch)
    assert batch.num_trained == sum(example.num_trained for example in made)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=12), st.integers(2, 20))
@settings(deadline=None)
def test_documents_cut_into_rows(lengths: list[int], capacity: int) -> None:
    made = [Example.of(list(e.token_ids), [(0, len(e))]) for e in examples(lengths, 0)]
    rows = list(cut_into_rows((segment_of(example, i) for i, example in enumerate(made)), capacity))
    batch = make_batch(rows, num_rows=len(rows), sequence_tokens=capacity)
    used = batch.segment_ids > 0
    # The batch has all tokens in order, with padding only at the end. Every token but the first of a document is a
    # target once.
    assert batch.token_ids[used].tolist() == list(range(1, sum(lengths) + 1))
    assert used.reshape(-1)[: sum(lengths)].all()
    targets = batch.targets[batch.loss_weights > 0].tolist()
    firsts = set(np.cumsum([1, *lengths])[:-1].tolist())
    assert targets == [token for token in range(1, sum(lengths) + 1) if token not in firsts]
    assert (batch.targets[batch.loss_weights > 0] == batch.token_ids[batch.loss_weights > 0] + 1).all()
    # Within a row, each document has its own segment.
    document = np.searchsorted(np.cumsum(lengths), np.arange(sum(lengths)), side="right")
    for row in range(len(rows)):
        placed = zip(batch.segment_ids[row].tolist(), batch.token_ids[row].tolist(), strict=True)
        of_row = {(segment, int(document[token - 1])) for segment, token in placed if segment}
        assert len({s for s, _ in of_row}) == len(of_row) == len({d for _, d in of_row})
        starts = np.flatnonzero(np.diff(np.concatenate([[0], batch.segment_ids[row]])) > 0)
        assert not batch.positions[row, starts].any()


def test_the_first_token_is_never_a_target() -> None:
    example = Example.of([5, 6, 7], [(0, 3)])
    assert example.trained.tolist() == [False, True, True]
    segment = segment_of(example, 4)
    assert isinstance(segment, Segment) and segment.row == 4
    assert segment.loss_weights.tolist() == [1.0, 1.0, 0.0]


@given(st.integers(1, 3000), st.integers(0, 2**63 - 1), st.integers(0, 5))
@settings(deadline=None, max_examples=50)
def test_permutations(size: int, seed: int, epoch: int) -> None:
    order = permuted(np.arange(size), size, seed, epoch)
    assert sorted(order.tolist()) == list(range(size))
    some = np.arange(0, size, 3)
    assert permuted(some, size, seed, epoch).tolist() == order[some].tolist()


def test_permutations_stay_the_same() -> None:
    # A run that started with an older version must still find its rows in this order.
    assert permuted(np.arange(10), 10, 0, 1, 0).tolist() == GOLDEN
    assert permuted(np.arange(10), 10, 0, 1, 1).tolist() != GOLDEN
    assert permuted(np.arange(3), 10**12, 7).tolist() == LARGE


def test_permutations_look_random() -> None:
    size = 4096
    order = permuted(np.arange(size), size, 3)
    assert abs(np.corrcoef(order, np.arange(size))[0, 1]) < 0.05
    assert abs(np.corrcoef(order[1:], order[:-1])[0, 1]) < 0.05
    first = [int(permuted(np.arange(1), 64, seed)[0]) for seed in range(2000)]
    counts = np.bincount(first, minlength=64)
    assert ((counts - 2000 / 64) ** 2 / (2000 / 64)).sum() == pytest.approx(63, abs=45)


GOLDEN = [8, 3, 4, 7, 0, 1, 5, 6, 2, 9]
LARGE = [447355247986, 235558639518, 795003132075]
