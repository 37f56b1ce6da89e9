"""Training: from a model, data and settings to an adapter or a model.

`finetune` and `pretrain` are the entry points. A run starts from weights (`start`), compiles its programs (`programs`)
from a pure step (`step`), an objective (`objectives`) and an optimizer (`optimizers`), and is driven by the loop and
its files (`run`). Imports run downwards in the order: pretrain and plan, finetune, run, programs, step and start,
objectives and optimizers, model, row_chunks and config.
"""

from __future__ import annotations

__all__: list[str] = []
