"""Checkpoints of runs: every bit is restored, each is complete or absent, and those of another model are refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ryzjax.errors import CheckpointError, ConfigError
from ryzjax.lora.adapter import LoraWeights
from ryzjax.sharding import Layout, Placement
from ryzjax.training.optimizers.config import OptimizerConfig
from ryzjax.training.optimizers.optimizer import make_optimizer
from ryzjax.training.run.checkpoints import RunCheckpoints

ROOT = Path(__file__).resolve().parents[2]


def arrays(rank: int = 8, seed: int = 0) -> dict:
    keys = jax.random.split(jax.random.key(seed), 3)
    params = {
        "attention.q": LoraWeights(
            a=jax.random.normal(keys[0], (2, rank, 512)), b=jax.random.normal(keys[1], (2, 512, rank))
        )
    }
    optimizer = make_optimizer(OptimizerConfig(optimizer="adamw8bit"), params, total_steps=10)
    _, state = optimizer.update(jax.tree.map(jnp.sin, params), optimizer.init(params), params)
    return {
        "params": params,
        "optimizer": state,
        "key": jax.random.key_data(keys[2]),
        "half": jax.random.normal(keys[2], (3, 5)).astype(jnp.bfloat16),
        "special": jnp.array([jnp.nan, -0.0, jnp.inf, 1e-42]),
    }


def assert_equal_bits(first: object, second: object) -> None:
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def test_every_bit_comes_back(tmp_path: Path):
    saved, state = arrays(), {"data": {"epoch": 1, "index": 77}, "config": {"rank": 8}, "best": 1.25}
    with RunCheckpoints(tmp_path / "run", fingerprint="abc") as checkpoints:
        assert checkpoints.latest_step() is None and checkpoints.best_step() is None
        checkpoints.save(5, saved, state, eval_loss=2.5)
    with RunCheckpoints(tmp_path / "run", fingerprint="abc") as checkpoints:
        assert (checkpoints.latest_step(), checkpoints.best_step(), checkpoints.eval_loss(5)) == (5, 5, 2.5)
        assert checkpoints.read_state(5) == state
        assert_equal_bits(checkpoints.restore(5, arrays(seed=1)), saved)


def test_onto_other_shardings(tmp_path: Path):
    placement = Placement(Layout.load("fsdp_tp"), jax.devices()[:8])
    x = jnp.arange(64 * 32, dtype=jnp.float32).reshape(64, 32)
    split = placement.sharding(("ffn", "embed"), x.shape)
    with RunCheckpoints(tmp_path, fingerprint="") as checkpoints:
        checkpoints.save(1, {"x": jax.device_put(x, split)}, {})
        checkpoints.wait()
        for sharding in (split, placement.replicated, placement.sharding(("embed", None), x.shape)):
            like = {"x": jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)}
            again = checkpoints.restore(1, like)["x"]
            assert again.sharding.is_equivalent_to(sharding, 2)
            np.testing.assert_array_equal(again, x)


def test_donated_right_after_saving(tmp_path: Path):
    """The step after a save overwrites the arrays that were saved."""
    step = jax.jit(lambda x: x + 1, donate_argnums=0)
    x = jnp.zeros((512, 512))
    with RunCheckpoints(tmp_path, fingerprint="", keep=5) as checkpoints:
        for number in range(5):
            checkpoints.save(number, {"x": x}, {})
            for _ in range(3):
                x = step(x)
        checkpoints.wait()
        for number in range(5):
            np.testing.assert_array_equal(checkpoints.restore(number, {"x": x})["x"], np.full((512, 512), 3.0 * number))


def test_the_latest_and_the_best_are_kept(tmp_path: Path):
    losses = {1: 3.0, 2: 1.0, 3: 2.0, 4: None, 5: float("nan"), 6: 1.5}
    with RunCheckpoints(tmp_path, fingerprint="", keep=2) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, {"x": jnp.full(3, float(step))}, {}, eval_loss=loss)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 5, 6] and checkpoints.best_step() == 2
    # A resumed run still knows the best checkpoint of the run before.
    with RunCheckpoints(tmp_path, fingerprint="", keep=2) as checkpoints:
        checkpoints.save(7, {"x": jnp.zeros(3)}, {}, eval_loss=1.1)
        checkpoints.wait()
        assert checkpoints.steps() == [2, 6, 7] and checkpoints.best_step() == 2
        checkpoints.save(8, {"x": jnp.zeros(3)}, {}, eval_loss=0.5)
        checkpoints.wait()
        assert checkpoints.steps() == [7, 8] and checkpoints.best_step() == 8
        np.testing.assert_array_equal(checkpoints.restore(8, {"x": jnp.ones(3)})["x"], [0, 0, 0])
    with RunCheckpoints(tmp_path / "latest", fingerprint="", keep=2, keep_best=False) as checkpoints:
        for step, loss in losses.items():
            checkpoints.save(step, {"x": jnp.zeros(3)}, {}, eval_loss=loss)
        checkpoints.wait()
        assert checkpoints.steps() == [5, 6]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with RunCheckpoints(tmp_path / "run", fingerprint="abc") as checkpoints:
        checkpoints.save(3, arrays(rank=8), {})
    return tmp_path / "run"


def test_of_another_model(saved: Path):
    with RunCheckpoints(saved, fingerprint="abc") as checkpoints:
        with pytest.raises(
            CheckpointError, match=r"codes' of step 3 is uint8\[2, 8, 512\]; expected uint8\[2, 16, 512\]"
        ):
            checkpoints.restore(3, arrays(rank=16))
        with pytest.raises(CheckpointError, match="array 'more' of step 3 is missing"):
            checkpoints.restore(3, arrays() | {"more": jnp.zeros(3)})
        fewer = arrays()
        del fewer["half"]
        with pytest.raises(CheckpointError, match="array 'half' of step 3 does not exist in this run"):
            checkpoints.restore(3, fewer)
        with pytest.raises(CheckpointError, match=r"'half' of step 3 is bfloat16\[3, 5\]; expected float32"):
            checkpoints.restore(3, arrays() | {"half": jnp.zeros((3, 5))})
        with pytest.raises(CheckpointError, match=r"no checkpoint of step 4; it has \[3\]"):
            checkpoints.restore(4, arrays())
    with (
        RunCheckpoints(saved, fingerprint="xyz") as checkpoints,
        pytest.raises(CheckpointError, match="trained over base model 'abc'; this one is 'xyz'"),
    ):
        checkpoints.read_state(3)


@pytest.mark.parametrize("part", ["arrays/d", "run/metadata", "arrays/manifest.ocdbt"])
def test_damaged(tmp_path: Path, part: str):
    # There is only one array. With several, if one read fails, Orbax leaves the others running, and they log errors
    # later.
    with RunCheckpoints(tmp_path, fingerprint="") as checkpoints:
        for step in (3, 4):
            checkpoints.save(step, {"x": jnp.ones(1000)}, {})
    damaged = tmp_path / "4" / part
    shutil.rmtree(damaged) if damaged.is_dir() else damaged.write_bytes(damaged.read_bytes()[:5])
    with RunCheckpoints(tmp_path, fingerprint="") as checkpoints:
        with pytest.raises(CheckpointError, match=r"step 4 cannot be read \(.*\); other checkpoints: \[3\]"):
            checkpoints.restore(4, {"x": jnp.zeros(1000)})
        np.testing.assert_array_equal(checkpoints.restore(3, {"x": jnp.zeros(1000)})["x"], np.ones(1000))


def test_refused(tmp_path: Path):
    with pytest.raises(ConfigError, match="keep=0"):
        RunCheckpoints(tmp_path, fingerprint="", keep=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be used for checkpoints"):
        RunCheckpoints(tmp_path / "file", fingerprint="")


FULL_DISK = """
import pathlib, resource, sys
import jax.numpy as jnp, numpy as np, jax
from ryzjax.errors import CheckpointError
from ryzjax.training.run.checkpoints import RunCheckpoints

checkpoints = RunCheckpoints(pathlib.Path(sys.argv[1]), fingerprint="", keep=1)
small, large = jnp.arange(100.0), jax.random.normal(jax.random.key(0), (300_000,))
checkpoints.save(1, {"x": small}, {"at": 1})
checkpoints.wait()
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
try:
    checkpoints.save(2, {"x": large}, {"at": 2})
    checkpoints.wait()
    sys.exit("a file was longer than any may be")
except CheckpointError as error:
    print(error)
assert [path.name for path in pathlib.Path(sys.argv[1]).iterdir()] == ["1"], "something half written is left"
assert checkpoints.steps() == [1], checkpoints.steps()
np.testing.assert_array_equal(checkpoints.restore(1, {"x": small})["x"], small)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
checkpoints.save(2, {"x": large}, {"at": 2})
checkpoints.wait()
assert checkpoints.steps() == [2], checkpoints.steps()
np.testing.assert_array_equal(checkpoints.restore(2, {"x": large})["x"], large)
checkpoints.close()
"""


def test_a_full_disk(tmp_path: Path):
    """A limit on file sizes simulates a full disk: writes fail halfway, and succeed again once it is lifted."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (
        "the checkpoint of step 2 cannot be written (File too large); check the disk space and permissions."
        in done.stdout
    )
    assert "The checkpoint of step 1 is intact" in done.stdout
    assert "Traceback" not in done.stderr, "what Orbax's threads log is raised, in one line"
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["2"]


def test_a_resumed_optimizer_goes_on_bit_for_bit(tmp_path: Path):
    params = {"layers/up.weight": jax.random.normal(jax.random.key(0), (2, 64, 256))}
    optimizer = make_optimizer(OptimizerConfig(optimizer="adamw8bit", weight_decay=0.1), params, total_steps=6)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.tree.map(jnp.cos, params), state, params)
        return optax.apply_updates(params, updates), state

    run = (params, optimizer.init(params))
    with RunCheckpoints(tmp_path, fingerprint="") as checkpoints:
        for number in range(6):
            if number == 3:
                checkpoints.save(3, run, {})
            run = step(*run)
        checkpoints.wait()
        again = checkpoints.restore(3, run)
    for _ in range(3):
        again = step(*again)
    assert_equal_bits(again, run)
