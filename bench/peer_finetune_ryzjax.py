"""A child process of finetune_peers.py: runs RyzJAX's compiled training step."""

from __future__ import annotations

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax import LoraConfig, OptimizerConfig, TrainConfig
from ryzjax.loading.open_model import open_model
from ryzjax.training.objectives.step_batch import StepBatch
from ryzjax.training.run.run import make_programs
from ryzjax.training.start.training_start import start_with_adapter


def main() -> None:
    """Runs one training step for each line of input and answers with its seconds and loss.

    The command line gives the model, the rank, the tokens of a row, and "bfloat16" or "int4" for the base.
    """
    path, rank, tokens, kind = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
    opened = open_model(path, dtype="bfloat16", weights="int4" if kind == "int4" else "auto")
    train = TrainConfig(batch_rows=1, remat="full", loss_chunk_tokens=tokens)
    begun = start_with_adapter(opened, LoraConfig(rank=rank, alpha=16), train, adapter=None, show_progress=False)
    programs = make_programs(
        begun.model,
        begun.params,
        optimizer=OptimizerConfig(learning_rate=2e-4, schedule="constant", warmup_steps=0),
        train=train,
        sequence_tokens=tokens,
        total_steps=1000,
    )
    step = programs.compile_train()
    state = programs.start(begun.params)
    ids = np.random.default_rng(0).integers(3, opened.model.config.vocab_size, (1, 1, tokens)).astype(np.int32)
    weights = np.ones(ids.shape, np.float32)
    weights[..., -1] = 0
    positions = np.arange(tokens, dtype=np.int32)[None, None]
    batch = StepBatch(*map(jnp.asarray, (ids, positions, np.ones_like(ids), np.roll(ids, -1, 2), weights)))
    key = jax.random.PRNGKey(0)
    state, metrics = step(state, begun.frozen, batch, key)
    float(metrics["loss"])
    print(json.dumps({"jax": jax.__version__}), flush=True)
    for _ in sys.stdin:
        began = time.perf_counter()
        state, metrics = step(state, begun.frozen, batch, key)
        loss = float(metrics["loss"])
        jax.block_until_ready(state)
        print(json.dumps({"seconds": time.perf_counter() - began, "loss": loss}), flush=True)


if __name__ == "__main__":
    main()
