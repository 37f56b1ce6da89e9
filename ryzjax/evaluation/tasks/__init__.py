"""Benchmarks. Each task says what it asks of a model, and how the answers are scored."""

from __future__ import annotations

from collections.abc import Mapping

from ryzjax.evaluation.tasks.demo import DemoTask, demo_tasks
from ryzjax.evaluation.tasks.gsm8k import GSM8K
from ryzjax.evaluation.tasks.hellaswag import HellaSwag
from ryzjax.evaluation.tasks.lambada import Lambada
from ryzjax.evaluation.tasks.mmlu import MMLU
from ryzjax.evaluation.tasks.rows import DataSource, HubData, LocalData, NoData, open_data
from ryzjax.evaluation.tasks.task import ContinuationTask, GenerationTask, TaskOptions, TaskResult

__all__ = [
    "TASKS",
    "ContinuationTask",
    "DataSource",
    "DemoTask",
    "GenerationTask",
    "HubData",
    "LocalData",
    "NoData",
    "TaskOptions",
    "TaskResult",
    "open_data",
]

TASKS: Mapping[str, ContinuationTask | GenerationTask] = {
    task.name: task for task in (HellaSwag(), MMLU(), Lambada(), GSM8K(), *demo_tasks())
}
"""Task name -> task, for all tasks."""
