"""The train step: batches in parts, remat, several devices, losses that are not finite, dropout."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ryzjax.lora.config import LoraConfig
from ryzjax.qarray import QFormat
from ryzjax.sharding import Layout, Placement
from ryzjax.training.model import Frozen
from ryzjax.training.objectives.make_objective import make_objective
from ryzjax.training.objectives.step_batch import StepBatch
from ryzjax.training.optimizers.config import OptimizerConfig
from ryzjax.training.optimizers.optimizer import make_optimizer
from ryzjax.training.step import TrainState, make_eval_step, make_train_step
from tests.models.configs import CONFIGS
from tests.training.gradients import assert_close, loss_and_grads
from tests.training.models import CONFIG, batch_of, full_model, lora_model

SFT = make_objective("sft", chunk_tokens=16)
KEY = jnp.asarray(jax.random.PRNGKey(7))
SGD = optax.sgd(1.0)


def start(params: dict, optimizer: optax.GradientTransformation = SGD) -> TrainState:
    return TrainState(params, optimizer.init(params), jnp.zeros((), jnp.int32))


def in_parts(batch: StepBatch, parts: int) -> StepBatch:
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), batch)


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_a_batch_in_parts_is_the_whole_batch(parts: int) -> None:
    model, params, frozen = lora_model()
    batch = batch_of()
    step = jax.jit(make_train_step(model, SFT, SGD))
    state, metrics = step(start(params), frozen, in_parts(batch, parts), KEY)
    loss, grads = loss_and_grads(model, params, frozen, batch, SFT)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["count"], batch.loss_weights.sum())
    assert_close(state.params, jax.tree.map(lambda p, g: p - g, params, grads))
    assert state.step == 1


@pytest.mark.parametrize(
    "options",
    [
        {"remat": "dots"},
        {"remat": "full"},
        {"remat": "full", "remat_layers": 2},
        {"remat": "full", "mlp_rows": 20},
    ],
)
def test_keeping_less_has_the_same_gradient(options: dict) -> None:
    plain = lora_model()
    saving, params, frozen = lora_model(**options)
    assert_close(
        loss_and_grads(saving, params, frozen, batch_of(), SFT),
        loss_and_grads(plain[0], params, frozen, batch_of(), SFT),
    )


@pytest.mark.parametrize("layout", ["fsdp_tp", "tp_dp"])
@pytest.mark.parametrize("what", ["lora", "full", "int4"])
def test_eight_devices_have_the_gradient_of_one(layout: str, what: str) -> None:
    placement = Placement(Layout.load(layout))
    formats = None
    config = CONFIG
    if what == "int4":
        formats = {
            f"layers.{i}.{path}": QFormat(kind="int4", group=16, pack=16, scale_dtype="bfloat16")
            for i in range(2)
            for path in ("attention.q", "attention.o", "mlp.gate", "mlp.up")
        }
    if what == "full":
        (model, params), (sharded, sharded_params) = full_model(), full_model(placement=placement)
        frozen = sharded_frozen = Frozen({}, {})
    else:
        model, params, frozen = lora_model(config=config, formats=formats)
        sharded, sharded_params, sharded_frozen = lora_model(config=config, placement=placement, formats=formats)
    loss, grads = loss_and_grads(model, params, frozen, batch_of(), SFT)
    batch = jax.tree.map(lambda x: jax.device_put(x, placement.sharding(("tokens", None), x.shape)), batch_of())
    sharded_loss, sharded_grads = loss_and_grads(sharded, sharded_params, sharded_frozen, batch, SFT)
    np.testing.assert_allclose(sharded_loss, loss, rtol=1e-5)
    assert_close(jax.device_get(sharded_grads), jax.device_get(grads))


def test_what_is_not_finite_changes_nothing() -> None:
    model, params, frozen = lora_model()
    optimizer = make_optimizer(OptimizerConfig(learning_rate=0.1), params, total_steps=9)
    step = jax.jit(make_train_step(model, SFT, optimizer))
    state = start(params, optimizer)
    poisoned = Frozen(
        {**frozen.weights, "final_norm.weight": jnp.full_like(frozen.weights["final_norm.weight"], jnp.nan)}, {}
    )
    after, metrics = step(state, poisoned, in_parts(batch_of(), 1), KEY)
    assert metrics["finite"] == 0
    jax.tree.map(np.testing.assert_array_equal, after, state)
    after, metrics = step(state, frozen, in_parts(batch_of(), 1), KEY)
    assert metrics["finite"] == 1 and after.step == 1
    assert any(np.any(a != b) for a, b in zip(jax.tree.leaves(after.params), jax.tree.leaves(params), strict=True))


def test_full_training_in_bfloat16_keeps_float32_masters() -> None:
    model, params = full_model(config=dataclasses.replace(CONFIG, dtype="bfloat16"))
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, warmup_steps=0), params, total_steps=9)
    step = jax.jit(make_train_step(model, SFT, optimizer))
    state, first = step(start(params, optimizer), Frozen({}, {}), in_parts(batch_of(), 1), KEY)
    for _ in range(5):
        state, metrics = step(state, Frozen({}, {}), in_parts(batch_of(), 1), KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}
    assert metrics["loss"] < first["loss"] - 0.1


def test_dropout_differs_by_step_and_is_off_in_evaluation() -> None:
    model, params, frozen = lora_model(LoraConfig(rank=4, alpha=8, dropout=0.5))
    step = jax.jit(make_train_step(model, SFT, optax.sgd(0.0)))
    state = start(params, optax.sgd(0.0))
    batch = in_parts(batch_of(), 1)
    state, first = step(state, frozen, batch, KEY)
    _, second = step(state, frozen, batch, KEY)
    _, again = step(start(params, optax.sgd(0.0)), frozen, batch, KEY)
    assert first["loss"] != second["loss"] and first["loss"] == again["loss"]
    evaluate = jax.jit(make_eval_step(model, SFT))
    sums = [evaluate(params, frozen, batch_of()) for _ in range(2)]
    assert sums[0].loss == sums[1].loss
    plain, _, _ = lora_model(LoraConfig(rank=4, alpha=8))
    np.testing.assert_allclose(sums[0].loss, jax.jit(make_eval_step(plain, SFT))(params, frozen, batch_of()).loss)


@pytest.mark.parametrize(
    "lora", [LoraConfig(rank=4, use_dora=True), LoraConfig(rank=4, use_rslora=True)], ids=["dora", "rslora"]
)
def test_variants_in_the_scan_are_those_of_single_layers(lora: LoraConfig) -> None:
    """The stacked model with adapters against AdaptedModel, layer by layer, over pages."""
    from ryzjax.evaluation.forward import Forward
    from ryzjax.lora.model import adapted

    model, params, frozen = lora_model(lora, config=CONFIGS["llama"])
    adapter = model.adapter(params, base_model=None)
    weights = dict(model.stacked.unstack(frozen.weights))
    single, leaves = adapted(model.model, tuple(weights[name] for name in model.model.weights), adapter, name="it")
    tokens = [(7 * i) % 64 for i in range(20)]
    expected = Forward(single, leaves, max_tokens=32).hidden(tokens)
    ids = jnp.asarray([tokens], jnp.int32)
    batch = batch_of(rows=1, length=20).segments._replace(
        token_ids=ids, positions=jnp.arange(20, dtype=jnp.int32)[None], segment_ids=jnp.ones((1, 20), jnp.int32)
    )
    hidden = jax.jit(lambda p: model.hidden(p, frozen, batch, None))(params)
    np.testing.assert_allclose(hidden, expected, rtol=1e-4, atol=1e-4)
