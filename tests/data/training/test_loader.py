"""BatchLoader: every row once per epoch, the same order after resuming, batches split over processes, and errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.data.training import Batches, BatchLoader, DataConfig, Prefetcher, TrainBatch, open_data
from ryzjax.data.training.forms import Form
from ryzjax.errors import ConfigError, DataError, UntrainedRowError
from tests.data.training.toy import CHATML, text_of, toy_tokenizer, write_lines

PAIRS = [{"prompt": f"{i}:", "completion": "x" * (i % 7) + str(i)} for i in range(23)]
PREFERENCES = [{"prompt": f"{i}:", "chosen": "yes" * (i % 3 + 1), "rejected": "no"} for i in range(7)]
TEXTS = [{"text": f"document {i} " + "y" * (i % 11)} for i in range(17)]
ROWS: dict[Form, list[dict[str, str]]] = {"prompt_completion": PAIRS, "preference": PREFERENCES, "text": TEXTS}
CONFIG = DataConfig(sequence_tokens=32, window_rows=5, data_seed=3)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return toy_tokenizer(tmp_path_factory.mktemp("toy"), CHATML)


def loader(
    tokenizer: Tokenizer, form: Form = "prompt_completion", batch_rows: int = 4, **changes: object
) -> BatchLoader:
    return open_data(replace(CONFIG, **changes), tokenizer, batch_rows=batch_rows, rows=ROWS[form]).train


def epoch(batches: BatchLoader, number: int) -> Iterator[TrainBatch]:
    while batches.epoch == number:
        yield next(batches)


def segments(batch: TrainBatch) -> list[list[int]]:
    return [
        ids[of_row == number].tolist()
        for ids, of_row in zip(batch.token_ids, batch.segment_ids, strict=True)
        for number in range(1, int(of_row.max()) + 1)
    ]


def same(a: TrainBatch, b: TrainBatch) -> bool:
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_every_example_once(tokenizer: Tokenizer, packing: bool, shuffle: bool) -> None:
    batches = loader(tokenizer, packing=packing, shuffle=shuffle)
    expected = sorted([*tokenizer.encode(row["prompt"] + row["completion"]), 1] for row in PAIRS)
    orders = []
    for number in range(3):
        found: list[list[int]] = []
        places: list[str] = []
        for batch in epoch(batches, number):
            found += segments(batch)
            places += batches.batch_places()
            texts = [text_of(tokenizer, ids) for ids in segments(batch)]
            listed = [place for row in batches.segment_places() for place in row]
            assert [f"row {text.removeprefix('<s>').split(':')[0]}" for text in texts] == listed
        assert sorted(found) == expected
        assert sorted(set(places)) == sorted(f"row {i}" for i in range(23))
        orders.append(found)
    assert (orders[0] == orders[1]) is not shuffle
    assert (orders[1] == orders[2]) is not shuffle
    if not packing:
        assert all(len(segments(batch)) <= 4 for batch in islice(batches, 3))
    if not packing and not shuffle:
        assert [text_of(tokenizer, ids)[3:].split(":")[0] for ids in orders[0]] == [str(i) for i in range(23)]


@pytest.mark.parametrize("form", ["prompt_completion", "preference", "text"])
@pytest.mark.parametrize("packing", [True, False])
def test_counts_batches_exactly(tokenizer: Tokenizer, form: Form, packing: bool) -> None:
    batches = loader(tokenizer, form, packing=packing)
    counted = [batches.count_batches(epochs) for epochs in (1, 2, 3)]
    assert counted == list(np.cumsum([len(list(epoch(batches, number))) for number in range(3)]))
    report = batches.scan()
    first = list(loader(tokenizer, form, packing=packing).one_pass())
    assert report.rows == len(ROWS[form])
    assert report.tokens == sum(int((batch.segment_ids > 0).sum()) for batch in first)
    assert report.trained_tokens == sum(batch.num_trained for batch in first)


@pytest.mark.parametrize("form", ["prompt_completion", "preference", "text"])
@pytest.mark.parametrize("prefetch", [False, True])
def test_a_resumed_run_is_bit_identical(tokenizer: Tokenizer, form: Form, prefetch: bool) -> None:
    straight = list(islice(loader(tokenizer, form), 14))
    assert loader(tokenizer, form).count_batches() < 5, "the run goes over several epochs"
    places: list[tuple[str, ...]] = []
    for stop in range(14):
        source = loader(tokenizer, form)
        before: Batches = Prefetcher(source) if prefetch else source
        head = list(islice(before, stop))
        state = json.loads(json.dumps(before.state()))
        if isinstance(before, Prefetcher):
            before.close()
        source = loader(tokenizer, form)
        after: Batches = Prefetcher(source) if prefetch else source
        after.restore(state)
        assert after.epoch == before.epoch
        tail = list(islice(after, 14 - stop))
        places.append(after.batch_places())
        if isinstance(after, Prefetcher):
            after.close()
        assert all(same(a, b) for a, b in zip(straight, head + tail, strict=True))
    assert len(set(places)) == 1


def test_restore_rewinds(tokenizer: Tokenizer) -> None:
    batches = loader(tokenizer)
    next(batches)
    state = batches.state()
    following = list(islice(batches, 5))
    with Prefetcher(batches) as ahead:
        for _ in range(3):
            ahead.restore(state)
            assert all(same(a, b) for a, b in zip(following, islice(ahead, 5), strict=True))


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"sequence_tokens": 64}, "sequence_tokens was 32, and is 64"),
        ({"data_seed": 4}, "seed was 3, and is 4"),
        ({"shuffle": False}, "seed was 3, and is -1"),
        ({"limit": 20}, "rows was 23, and is 20"),
        ({"window_rows": 6}, "window_rows was 5, and is 6"),
    ],
)
def test_refuses_to_resume_with_other_data(tokenizer: Tokenizer, changes: dict[str, object], name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        open_data(replace(CONFIG, **changes), tokenizer, batch_rows=4, rows=PAIRS).train.restore(
            loader(tokenizer).state()
        )
    for at in (0, 11, 22):
        other = [{**row, "completion": "other"} if i == at else row for i, row in enumerate(PAIRS)]
        with pytest.raises(ConfigError, match="its fingerprint was"):
            open_data(CONFIG, tokenizer, batch_rows=4, rows=other).train.restore(loader(tokenizer).state())


def test_a_place_behind_the_end_of_a_window_is_told(tokenizer: Tokenizer) -> None:
    batches = loader(tokenizer)
    batches.restore({**batches.state(), "unit": 1000})
    with pytest.raises(DataError, match="has read 1000: the rows, or how they are read, have changed"):
        next(batches)


@pytest.mark.parametrize("form", ["prompt_completion", "preference"])
def test_processes_share_each_batch(tokenizer: Tokenizer, form: Form) -> None:
    whole = loader(tokenizer, form, batch_rows=8)
    parts = [whole.shard(i, 4) for i in range(4)]
    for _ in range(6):
        batch, slices = next(whole), [next(part) for part in parts]
        assert same(batch, TrainBatch(*(np.concatenate(arrays) for arrays in zip(*slices, strict=True))))
        assert all(part.state() == whole.state() for part in parts)
        assert set(whole.batch_places()) == {place for part in parts for place in part.batch_places()}


def test_the_last_batch(tokenizer: Tokenizer) -> None:
    filled = list(loader(tokenizer, packing=False).one_pass())
    assert [int((batch.segment_ids.max(axis=1) > 0).sum()) for batch in filled] == [4, 4, 4, 4, 4, 3]
    config = replace(CONFIG, packing=False)
    dropped = open_data(config, tokenizer, batch_rows=4, rows=PAIRS, drop_last=True).train
    assert dropped.count_batches(2) == 10
    for _ in range(2):
        kept = list(islice(dropped, 5))
        assert all((batch.segment_ids.max(axis=1) > 0).all() for batch in kept)
        assert len({tuple(ids) for batch in kept for ids in segments(batch)}) == 20


def test_preference_pairs_stand_together(tokenizer: Tokenizer) -> None:
    seen = 0
    for batch in loader(tokenizer, "preference").one_pass():
        for row in range(0, 4, 2):
            texts = [text_of(tokenizer, batch.token_ids[i][batch.segment_ids[i] > 0].tolist()) for i in (row, row + 1)]
            if texts != ["", ""]:
                seen += 1
                assert texts[0].split(":")[0] == texts[1].split(":")[0]
                assert "yes" in texts[0] and texts[1].endswith("no</s>")
                trained = [batch.targets[i][batch.loss_weights[i] > 0].tolist() for i in (row, row + 1)]
                assert text_of(tokenizer, trained[1]) == "no</s>"
                assert text_of(tokenizer, trained[0]).replace("yes", "") == "</s>"
    assert seen == len(PREFERENCES)


def test_documents_end_to_end(tokenizer: Tokenizer, tmp_path: Path) -> None:
    text = "".join(f"Line {i}.\n" for i in range(900))
    (tmp_path / "a.txt").write_text(text)
    config = replace(CONFIG, data=(str(tmp_path / "a.txt"),), shuffle=False)
    ids: list[int] = []
    for batch in open_data(config, tokenizer, batch_rows=4).train.one_pass():
        ids += batch.token_ids[batch.segment_ids > 0].tolist()
    assert ids == [*tokenizer.encode(text), 1]


def test_several_sources_and_a_limit(tokenizer: Tokenizer, tmp_path: Path) -> None:
    one, two = (write_lines(tmp_path / name, rows) for name, rows in (("1.jsonl", PAIRS[:4]), ("2.jsonl", PAIRS[4:9])))
    config = replace(CONFIG, data=(one, two), limit=6, packing=False, shuffle=False)
    batches = open_data(config, tokenizer, batch_rows=6).train
    next(batches)
    assert batches.batch_places() == tuple([f"{one}:{i}" for i in (1, 2, 3, 4)] + [f"{two}:{i}" for i in (1, 2)])
    mixed = write_lines(tmp_path / "3.jsonl", [{"instruction": "a", "output": "b"}])
    assert open_data(replace(CONFIG, data=(one, mixed)), tokenizer, batch_rows=1).forms == (
        "prompt_completion",
        "alpaca",
    )
    for rows in (TEXTS, PREFERENCES):
        other = write_lines(tmp_path / "4.jsonl", rows)
        with pytest.raises(DataError, match="cannot be mixed"):
            open_data(replace(CONFIG, data=(one, other)), tokenizer, batch_rows=2)


def test_held_out_rows(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "1.jsonl", PAIRS)
    config = replace(CONFIG, data=(path,), eval_fraction=0.2, packing=False)
    found = []
    for _ in range(2):
        train, evaluation, _ = open_data(config, tokenizer, batch_rows=23)
        assert evaluation is not None
        next(train)
        next(evaluation)
        found.append((set(train.batch_places()), set(evaluation.batch_places())))
        assert next(evaluation, None) is None and same(next(evaluation.one_pass()), next(evaluation.one_pass()))
    assert found[0] == found[1] and not found[0][0] & found[0][1]
    assert len(found[0][1]) == 5 and len(found[0][0]) == 18
    evaluation = open_data(replace(CONFIG, data=(path,), eval_data=(path,)), tokenizer, batch_rows=4).evaluation
    assert evaluation is not None and evaluation.num_rows == 23
    with pytest.raises(ConfigError, match=r"eval_fraction=0.01 of 23 rows leaves 23 to train on and 0"):
        open_data(replace(config, eval_fraction=0.01), tokenizer, batch_rows=4)


LONG = [PAIRS[0], {"prompt": "a", "completion": "b" * 40}, {"prompt": "c" * 40, "completion": "d"}]


def test_rows_that_are_too_long(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write_lines(tmp_path / "1.jsonl", LONG)
    config = replace(CONFIG, data=(path,), shuffle=False)
    with pytest.raises(DataError, match=r"1.jsonl:2: is 43 tokens long; expected at most sequence_tokens=32. .*drop_"):
        next(open_data(config, tokenizer, batch_rows=1).train)
    dropped = open_data(replace(config, drop_long=True), tokenizer, batch_rows=1).train.scan()
    assert (dropped.rows, dropped.examples, dropped.dropped_long) == (3, 1, 2)
    with pytest.raises(DataError, match=r"1.jsonl:3: has no trained token in its first 32 tokens, to which it was cut"):
        open_data(replace(config, truncate=True), tokenizer, batch_rows=1).train.scan()
    batches = open_data(replace(config, truncate=True, drop_untrained=True), tokenizer, batch_rows=1).train
    cut = batches.scan()
    assert (cut.examples, cut.truncated, cut.dropped_untrained, cut.dropped_long) == (2, 1, 1, 0)
    assert sorted(len(ids) for batch in batches.one_pass() for ids in segments(batch)) == [5, 32]
    pair = [{"prompt": "a", "chosen": "b", "rejected": "c" * 40}]
    report = open_data(
        replace(CONFIG, drop_long=True), tokenizer, batch_rows=2, rows=[*PREFERENCES, *pair]
    ).train.scan()
    assert (report.dropped_long, report.examples) == (1, 14)


UNTRAINED: list[tuple[Form, dict[str, object], str]] = [
    ("prompt_completion", {"prompt": "a", "completion": ""}, "completion is empty; expected text to train on"),
    ("prompt_completion", {"prompt": "a", "completion": None}, "completion is empty"),
    ("prompt_completion", {"prompt": [{"role": "user", "content": "a"}], "completion": []}, "completion is empty"),
    ("alpaca", {"instruction": "a", "output": ""}, "output is empty"),
    ("messages", {"messages": []}, "messages is empty"),
    ("messages", {"messages": [{"role": "user", "content": "a"}]}, "messages has no assistant message to train on"),
    ("messages", {"messages": [{"role": "assistant", "content": "a"}]}, "starts with its only assistant message"),
    ("preference", {"prompt": "a", "chosen": "b", "rejected": ""}, "rejected is empty"),
    ("preference", {"chosen": "", "rejected": "a b"}, "chosen is empty"),
    ("text", {"text": ""}, "text is empty"),
]
GOOD: dict[Form, dict[str, object]] = {
    "prompt_completion": {"prompt": "a", "completion": "b"},
    "alpaca": {"instruction": "a", "output": "b"},
    "messages": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
    "preference": {"prompt": "a", "chosen": "b", "rejected": "c"},
    "text": {"text": "a"},
}


@pytest.mark.parametrize(("form", "row", "reason"), UNTRAINED)
def test_rows_with_nothing_to_train_on(
    form: Form, row: dict[str, object], reason: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """The error names a remedy, and the remedy works."""
    path = write_lines(tmp_path / "1.jsonl", [GOOD[form], row, GOOD[form]])
    config = replace(CONFIG, data=(path,), form=form, sequence_tokens=128)
    with pytest.raises(UntrainedRowError, match=rf"1\.jsonl:2: {reason}.*; correct the row, or set drop_untrained"):
        open_data(config, tokenizer, batch_rows=2).train.scan()
    report = open_data(replace(config, drop_untrained=True), tokenizer, batch_rows=2).train.scan()
    assert (report.rows, report.dropped_untrained) == (3, 1)
    assert report.examples == (4 if form == "preference" else 2)


def test_malformed_rows_are_not_dropped(tokenizer: Tokenizer) -> None:
    """drop_untrained does not drop malformed rows, and their errors do not name it."""
    rows = [GOOD["prompt_completion"], {"prompt": "a", "completion": 5}]
    with pytest.raises(DataError, match=r"expected both as text") as caught:
        open_data(replace(CONFIG, drop_untrained=True), tokenizer, batch_rows=1, rows=rows).train.scan()
    assert "drop_untrained" not in str(caught.value)


def test_nothing_left(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="no batch can be made of 2 rows"):
        next(open_data(replace(CONFIG, drop_long=True), tokenizer, batch_rows=1, rows=LONG[1:]).train)


@pytest.mark.parametrize(
    ("rows", "batch_rows", "shard", "message"),
    [(PAIRS, 0, (0, 1), "batch_rows=0"), (PAIRS, 6, (0, 4), "multiple of 4"), (PAIRS, 4, (4, 4), "expected 0 to 3"),
     (PREFERENCES, 3, (0, 1), "pairs of rows.*multiple of 2"), (PREFERENCES, 4, (0, 4), "multiple of 8")],
)  # fmt: skip
def test_bad_batches(
    tokenizer: Tokenizer, rows: list[dict[str, str]], batch_rows: int, shard: tuple[int, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_data(CONFIG, tokenizer, batch_rows=batch_rows, rows=rows).train.shard(*shard)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sequence_tokens": 1}, "sequence_tokens=1"),
        ({"window_rows": 0}, "window_rows=0"),
        ({"limit": 0}, "limit=0"),
        ({"eval_fraction": 1.0}, "eval_fraction=1.0"),
        ({"eval_fraction": 0.1, "eval_data": ("a",)}, "both say what to evaluate on"),
        ({"truncate": True, "drop_long": True}, "truncate and drop_long"),
        ({"data_seed": -1}, "data_seed=-1"),
    ],
)
def test_bad_configs(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)


def test_data_must_be_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="data names nothing to train on"):
        open_data(CONFIG, tokenizer, batch_rows=1)
    with pytest.raises(ConfigError, match="data and rows are both given"):
        open_data(replace(CONFIG, data=("a",)), tokenizer, batch_rows=1, rows=PAIRS)


def test_errors_come_when_their_batch_does(tokenizer: Tokenizer) -> None:
    rows = [*PAIRS[:10], {"prompt": "only"}]
    config = replace(CONFIG, shuffle=False, packing=False)
    with Prefetcher(open_data(config, tokenizer, batch_rows=5, rows=rows).train) as batches:
        next(batches)
        next(batches)
        for _ in range(2):
            with pytest.raises(DataError, match="row 10: no 'completion'"):
                next(batches)
    assert all(thread.name != "ryzjax-data" for thread in threading.enumerate())


def test_template_variables_are_json_or_text() -> None:
    config = DataConfig(template_variables={"enable_thinking": "false", "date": "1 May", "n": "3"})
    assert config.parsed_variables() == {"enable_thinking": False, "date": "1 May", "n": 3}
