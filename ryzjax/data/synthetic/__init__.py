"""Synthetic rows of our own, for the demo model: sums, lists to look things up in, facts as JSON, tools, small talk."""

from __future__ import annotations

from ryzjax.data.synthetic.exchange import ChatRow, Exchange, HeldOut, Task
from ryzjax.data.synthetic.rows import SyntheticRows, held_out, write_jsonl
from ryzjax.data.synthetic.tasks import HELD_OUT, MIXTURE, NEW_TASKS, TASKS

__all__ = [
    "HELD_OUT",
    "MIXTURE",
    "NEW_TASKS",
    "TASKS",
    "ChatRow",
    "Exchange",
    "HeldOut",
    "SyntheticRows",
    "Task",
    "held_out",
    "write_jsonl",
]
