"""Messages name the base of an adapter, but not its path."""

from __future__ import annotations

import numpy as np
import pytest

from ryzjax.errors import ConfigError
from ryzjax.lora import Adapter, LoraConfig
from ryzjax.lora.adapter import LoraWeights, check_adapter
from ryzjax.lora.base_name import base_name


@pytest.mark.parametrize(
    ("base", "name"),
    [
        (None, None),
        ("org/model", "org/model"),
        ("models/mine", "models/mine"),
        ("/srv/private/llama", "llama"),
        ("/srv/private/llama/", "llama"),
        ("~/models/llama", "llama"),
    ],
)
def test_names(base: str | None, name: str | None):
    assert base_name(base) == name


def test_an_adapter_of_another_model():
    weights = {"q": LoraWeights(a=np.zeros((8, 4), np.float32), b=np.zeros((4, 8), np.float32))}
    adapter = Adapter(config=LoraConfig(), weights=weights, base_model="/srv/private/llama")
    for linears in ({}, {"q": (4, 5)}):
        with pytest.raises(ConfigError, match="llama") as caught:
            check_adapter(adapter, linears, name="mine")
        assert "/srv" not in str(caught.value)
