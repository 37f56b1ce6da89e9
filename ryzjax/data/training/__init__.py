"""Training data: rows of files and data sets become packed batches, in an order that a resumed run can continue.

`open_data` is the entry point. Rows (`rows`, `row_files`) are read in a form (`forms`, `messages`) as samples
(`sample`), rendered into examples of tokens (`render`, `examples`), packed a window at a time (`windows`, `packing`)
and served as batches (`loader`, `prefetch`). Nothing here imports jax.
"""

from ryzjax.data.training.batch import TrainBatch
from ryzjax.data.training.config import DataConfig
from ryzjax.data.training.example import Example
from ryzjax.data.training.forms import Form
from ryzjax.data.training.loader import Batches, BatchLoader
from ryzjax.data.training.open import TrainingData, open_data
from ryzjax.data.training.prefetch import Prefetcher
from ryzjax.data.training.render import Renderer, TrainOn
from ryzjax.data.training.report import DataReport
from ryzjax.data.training.rows import Rows

__all__ = [
    "BatchLoader",
    "Batches",
    "DataConfig",
    "DataReport",
    "Example",
    "Form",
    "Prefetcher",
    "Renderer",
    "Rows",
    "TrainBatch",
    "TrainOn",
    "TrainingData",
    "open_data",
]
