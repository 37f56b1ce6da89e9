"""Synthetic rows of our own, for the demo model: sums, lists to look things up in, facts as JSON, tools, small talk."""

from __future__ import annotations

from ryzjax.data.synthetic.row import Exchange, HeldOut, Row, Task
from ryzjax.data.synthetic.rows import SyntheticRows, held_out, write_jsonl
from ryzjax.data.synthetic.tasks import MIXTURE, NEW_TASKS, TASKS

__all__ = [
    "MIXTURE",
    "NEW_TASKS",
    "TASKS",
    "Exchange",
    "HeldOut",
    "Row",
    "SyntheticRows",
    "Task",
    "held_out",
    "write_jsonl",
]
