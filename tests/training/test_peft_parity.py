"""One training step against peft and torch: the same model, adapter and rows give the same loss and gradients."""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.checkpoint.peft.read import read_adapter
from ryzjax.lora import LoraWeights, row_norms
from ryzjax.models.stacked import StackedModel
from ryzjax.training.model import Frozen, LoraModel
from ryzjax.training.objectives.make_objective import make_objective
from ryzjax.training.objectives.step_batch import StepBatch
from ryzjax.training.start.shapes import place_adapter
from tests.goldens.make_families import build
from tests.peft_models import adapted_by_peft, opened

pytestmark = pytest.mark.parity
torch = pytest.importorskip("torch")
peft = pytest.importorskip("peft")

LENGTHS = (23, 17)
VARIANTS = {
    "lora": ("llama", {"target_modules": "all-linear"}),
    "rslora": ("qwen3", {"target_modules": "all-linear", "use_rslora": True}),
    "dora": ("qwen2", {"target_modules": "all-linear", "use_dora": True}),
    "lm_head": ("llama", {"target_modules": ["lm_head", "o_proj"]}),
    "soft caps, windows": ("gemma2", {"target_modules": "all-linear"}),
}


def rows() -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Returns the token ids of two sequences, and which of them are trained."""
    rng = np.random.default_rng(0)
    tokens = [rng.integers(3, 40, length) for length in LENGTHS]
    return tokens, [rng.random(length) < 0.6 for length in LENGTHS]


def packed() -> StepBatch:
    """Returns a batch with both sequences in one row, followed by padding."""
    length = sum(LENGTHS) + 5
    tokens, trained = rows()
    arrays = [np.zeros((1, length), np.int32) for _ in range(4)]
    weights = np.zeros((1, length), np.float32)
    start = 0
    for number, (ids, mask) in enumerate(zip(tokens, trained, strict=True), 1):
        end = start + len(ids)
        arrays[0][0, start:end], arrays[1][0, start:end], arrays[2][0, start:end] = ids, np.arange(len(ids)), number
        arrays[3][0, start : end - 1], weights[0, start : end - 1] = ids[1:], mask[1:]
        start = end
    return StepBatch(*map(jnp.asarray, (*arrays, weights)))


def torch_loss(model) -> torch.Tensor:
    """Returns the mean cross-entropy over the trained tokens of both sequences, which run separately."""
    total, count = 0.0, 0
    for ids, mask in zip(*rows(), strict=True):
        logits = model(torch.tensor(ids)[None], use_cache=False).logits[0].float()
        losses = torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[1:]), reduction="none")
        total = total + losses[torch.tensor(mask[1:])].sum()
        count += int(mask[1:].sum())
    return total / count


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_loss_and_gradients_of_a_step(variant: str, tmp_path: Path) -> None:
    family, options = VARIANTS[variant]
    (tmp_path / "base").mkdir()
    plain, _ = build(family, tmp_path / "base", seed=1)
    theirs = adapted_by_peft(plain, options, tmp_path / "adapter")
    expected = torch_loss(theirs)
    expected.backward()
    gradients = {name: p.grad.numpy() for name, p in theirs.named_parameters() if p.grad is not None}

    model, leaves = opened(tmp_path / "base")
    adapter = read_adapter(tmp_path / "adapter", model)
    weights = dict(zip(model.weights, leaves, strict=True))
    norms = {layer: row_norms(weights[f"{layer}.weight"]) for layer in adapter.weights if adapter.config.use_dora}
    trained = LoraModel(stacked=StackedModel(model), remat="full", lora=adapter.config, layers=tuple(adapter.weights))
    params = place_adapter(trained, {layer: jax.device_get(update) for layer, update in adapter.weights.items()})
    as_updates = {layer: LoraWeights(a=np.asarray(norm), b=np.asarray(norm)) for layer, norm in norms.items()}  # pyright: ignore
    stacked_norms = {
        name: {path: jnp.asarray(update.a) for path, update in updates.items()}
        for name, updates in (trained.stack_adapter(as_updates) if norms else {}).items()
    }
    frozen = Frozen(trained.stacked.stack(weights), stacked_norms)
    objective = make_objective("sft", chunk_tokens=16)
    batch = packed()

    def loss(params: dict) -> jax.Array:
        return objective.sums(trained, params, frozen, batch, None).loss / objective.count(batch)

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, expected.item(), rtol=1e-4)
    ours = trained.adapter(grads, base_model=None)
    compared = 0
    for layer, update in ours.weights.items():
        found = [name for name in gradients if _is_of(name, layer)]
        for part, array in (("lora_A", update.a), ("lora_B", update.b), ("magnitude", update.magnitude)):
            for name in (name for name in found if part in name):
                np.testing.assert_allclose(array, gradients[name].reshape(array.shape), rtol=0, atol=1e-4)
                compared += 1
    assert compared == len(gradients)


HF = {
    "q": "q_proj",
    "k": "k_proj",
    "v": "v_proj",
    "o": "o_proj",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
}


def _is_of(name: str, layer: str) -> bool:
    """Whether a parameter of torch belongs to a layer of RyzJAX."""
    if layer == "lm_head":
        return ".lm_head." in name
    _, index, _, short = layer.split(".")
    return f".layers.{index}." in name and f".{short}_proj." in name
