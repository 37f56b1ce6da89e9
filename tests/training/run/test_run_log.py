"""Logs of runs: they can be read back, and a resumed run writes the same file as an uninterrupted one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from ryzjax.errors import DataError, LogError, MissingExtraError
from ryzjax.training.run.run_log import JsonlLog, RunLogs, TensorBoardLog, WandbLog, read_log


def write(path: Path, steps: range, *, resumed_step: int = 0) -> None:
    log = JsonlLog(path, resumed_step=resumed_step)
    for step in steps:
        log.log(step, {"loss": 1 / step, "tokens": 512 * step})
    log.close()


def test_lines_come_back(tmp_path: Path):
    write(tmp_path / "run" / "log.jsonl", range(1, 4))
    rows = read_log(tmp_path / "run" / "log.jsonl")
    assert rows == [{"step": step, "loss": 1 / step, "tokens": 512 * step} for step in (1, 2, 3)]


def test_a_resumed_log_is_as_if_never_stopped(tmp_path: Path):
    whole, resumed = tmp_path / "whole.jsonl", tmp_path / "resumed.jsonl"
    write(whole, range(1, 11))
    write(resumed, range(1, 9))
    with resumed.open("a") as file:
        file.write('{"step": 9, "lo')
    write(resumed, range(7, 11), resumed_step=6)
    assert resumed.read_bytes() == whole.read_bytes()
    write(resumed, range(1, 3))
    assert len(read_log(resumed)) == 2, "a run from the start begins a new file"
    write(tmp_path / "new.jsonl", range(5, 7), resumed_step=4)
    assert [row["step"] for row in read_log(tmp_path / "new.jsonl")] == [5, 6]


def test_numbers_json_has_not(tmp_path: Path):
    log = JsonlLog(tmp_path / "log.jsonl")
    log.log(1, {"loss": float("nan"), "grad_norm": float("inf"), "lr": 0.5})
    log.close()
    text = (tmp_path / "log.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "loss": None, "grad_norm": None, "lr": 0.5}


def test_what_cannot_be_written_or_read(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError, match=r"file/log.jsonl: cannot be written"):
        JsonlLog(tmp_path / "file" / "log.jsonl")
    with pytest.raises(DataError, match=r"no.jsonl: cannot be read"):
        read_log(tmp_path / "no.jsonl")
    for line, message in (("{", "bad.jsonl:2: not JSON"), ("[1]", "bad.jsonl:2: no step"), ('{"loss": 1}', "no step")):
        (tmp_path / "bad.jsonl").write_text('{"step": 1}\n' + line)
        with pytest.raises(DataError, match=message):
            read_log(tmp_path / "bad.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk(tmp_path: Path):
    log = JsonlLog(tmp_path / "log.jsonl")
    log.close()
    log._file = Path("/dev/full").open("ab", buffering=0)  # noqa: SIM115
    with pytest.raises(LogError, match="No space left on device"):
        log.log(1, {"loss": 1.0})
    log.close()


def test_tensorboard(tmp_path: Path):
    events = pytest.importorskip("tensorboardX.proto.event_pb2")
    log = TensorBoardLog(tmp_path)
    log.log(10, {"loss": 1.5, "learning_rate": 1e-4})
    log.close()
    data = next(tmp_path.glob("events.out.tfevents.*")).read_bytes()
    found, at = {}, 0
    while at < len(data):
        # A record has a length (8 bytes), a checksum (4), the event, and a checksum (4).
        length = int.from_bytes(data[at : at + 8], "little")
        event = events.Event.FromString(data[at + 12 : at + 12 + length])
        found |= {value.tag: (event.step, value.simple_value) for value in event.summary.value}
        at += length + 16
    assert found == {"loss": (10, 1.5), "learning_rate": (10, np.float32(1e-4))}


def test_packages_that_are_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'ryzjax\[train\]'"):
        TensorBoardLog(tmp_path)
    with pytest.raises(MissingExtraError, match="pip install wandb"):
        WandbLog("project", name="run", folder=tmp_path, config={})


def test_several_logs_as_one(tmp_path: Path):
    logs = RunLogs([JsonlLog(tmp_path / "a"), JsonlLog(tmp_path / "b")])
    logs.log(1, {"loss": 2.0})
    logs.close()
    assert read_log(tmp_path / "a") == read_log(tmp_path / "b") == [{"step": 1, "loss": 2.0}]
