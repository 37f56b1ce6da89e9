"""Measures how good a model is: perplexity, divergence from a reference model, and benchmarks."""

from __future__ import annotations

from ryzjax.evaluation.activation_cost import ActivationCost, activation_cost
from ryzjax.evaluation.divergence import Divergence, ReferenceStates, divergence, reference_states
from ryzjax.evaluation.evaluate import check_tasks, evaluate, evaluate_task, text_activation_cost, text_divergence
from ryzjax.evaluation.forward import Forward, Head
from ryzjax.evaluation.perplexity import Perplexity, perplexity
from ryzjax.evaluation.tasks import TASKS, DataSource, HubData, LocalData, NoData, TaskOptions, TaskResult, open_data
from ryzjax.evaluation.text import EvaluationText, Window, sliding_windows
from ryzjax.loading.open_model import OpenModel, open_model

__all__ = [
    "TASKS",
    "ActivationCost",
    "DataSource",
    "Divergence",
    "EvaluationText",
    "Forward",
    "Head",
    "HubData",
    "LocalData",
    "NoData",
    "OpenModel",
    "Perplexity",
    "ReferenceStates",
    "TaskOptions",
    "TaskResult",
    "Window",
    "activation_cost",
    "check_tasks",
    "divergence",
    "evaluate",
    "evaluate_task",
    "open_data",
    "open_model",
    "perplexity",
    "reference_states",
    "sliding_windows",
    "text_activation_cost",
    "text_divergence",
]
