"""Loading: what turns the files of a checkpoint into a model that can run.

Serving, training, quantizing and evaluation all enter here.
"""

from ryzjax.loading.dummy import dummy_weights
from ryzjax.loading.load import load_weights, stored_model
from ryzjax.loading.open_model import OpenModel, open_model

__all__ = ["OpenModel", "dummy_weights", "load_weights", "open_model", "stored_model"]
