"""The fingerprint of a base model does not depend on order and sharding, and differs for other weights."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from ryzjax.sharding import Layout, Placement
from ryzjax.training.start.fingerprint import base_fingerprint


def test_fingerprints():
    placement = Placement(Layout.load("tp"), jax.devices()[:8])
    weights = {"q": jax.random.normal(jax.random.key(0), (64, 48)), "codes": jnp.arange(9, dtype=jnp.uint8)}
    name = base_fingerprint(weights)
    assert name == base_fingerprint({key: weights[key] for key in reversed(weights)}) and len(name) == 16
    split = jax.device_put(weights["q"], placement.sharding(("heads", None), (64, 48)))
    assert name == base_fingerprint(weights | {"q": split})
    others = [
        weights | {"q": weights["q"] * 1.0001},
        weights | {"q": weights["q"].astype(jnp.bfloat16)},
        weights | {"q": weights["q"].reshape(48, 64)},
        {"k": weights["q"], "codes": weights["codes"]},
    ]
    assert len({name, *map(base_fingerprint, others)}) == 5
