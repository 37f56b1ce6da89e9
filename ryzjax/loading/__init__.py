"""Turns the files of a checkpoint into a model that can run.

Serving, training, quantizing and evaluation all enter here. This folder may hold what reads a model's config, decides
the format of each weight (`plan_weights`), and puts the weights on the devices (`load_weights`, `WeightPlan.load`). It
may not hold knowledge of file formats or of names in files, which belongs to `checkpoint`; quantization algorithms,
which belong to `quant`; or anything about requests or training steps.
"""

from ryzjax.loading.dummy import dummy_weights
from ryzjax.loading.load import load_weights, stored_model
from ryzjax.loading.model_config import read_model_config
from ryzjax.loading.open_model import OpenModel, open_model
from ryzjax.loading.weight_plan import ActivationChoice, WeightChoice, WeightPlan, plan_weights

__all__ = [
    "ActivationChoice",
    "OpenModel",
    "WeightChoice",
    "WeightPlan",
    "dummy_weights",
    "load_weights",
    "open_model",
    "plan_weights",
    "read_model_config",
    "stored_model",
]
