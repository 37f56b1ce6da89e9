"""The synthetic data of the demo model: rows and held-out problems written by programs, and the model's tokenizer.

The kinds of rows are arithmetic, look-up in lists, extraction to JSON, tool calls, sorting, strings, stories and small
talk. `docs/demo-data.md` describes them.
"""

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
