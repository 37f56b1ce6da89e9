"""A frozen base in host memory: the same numbers, and device bytes that do not grow with the base."""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax import BaseConfig, DataConfig, LoraConfig, OptimizerConfig, TrainConfig, finetune
from ryzjax.errors import ConfigError
from ryzjax.models.stacked import StackedModel
from ryzjax.qarray import QFormat
from ryzjax.quant.nf4 import nf4_format
from ryzjax.sharding import Layout, Placement
from ryzjax.sharding.host_memory import check_host_memory, host_sharding, is_host_sharding, is_on_host, to_device
from ryzjax.training.model import Frozen, LoraModel
from ryzjax.training.objectives.make_objective import make_objective
from ryzjax.training.optimizers.optimizer import make_optimizer
from ryzjax.training.plan import MemoryPlan, plan_training
from ryzjax.training.programs import Programs
from ryzjax.training.run.run_log import read_log
from ryzjax.training.start.fingerprint import base_fingerprint
from ryzjax.training.start.shapes import adapter_shapes
from tests.evaluation.models import ONE
from tests.models.configs import CONFIGS
from tests.training.models import batch_of, lora_model

SFT = make_objective("sft", chunk_tokens=16)
KEY = jnp.asarray(jax.random.PRNGKey(7))
INT4 = QFormat(kind="int4", group=16, pack=16, scale_dtype="bfloat16")
LAYERS = ("q", "k", "v", "o")

pytestmark = [
    pytest.mark.skipif(jax.default_backend() != "cpu", reason="written for the devices of the test set-up"),
]


def on_host(model: LoraModel, frozen: Frozen) -> tuple[LoraModel, Frozen]:
    """Returns the same model and numbers, with the layers in host memory."""
    stacked = StackedModel(model.model.with_layers_on_host())
    weights = {name: jax.device_put(array, stacked.weights[name].sharding) for name, array in frozen.weights.items()}
    return dataclasses.replace(model, stacked=stacked), Frozen(weights, frozen.row_norms)


def programs(model: LoraModel) -> Programs:
    options = OptimizerConfig(optimizer="adamw8bit", learning_rate=1e-2, warmup_steps=0)
    optimizer = make_optimizer(options, adapter_shapes(model), total_steps=10)
    return Programs(model=model, objective=SFT, optimizer=optimizer, rows=4, sequence_tokens=24, accumulate=2)


def trained(model: LoraModel, params: dict, frozen: Frozen) -> tuple[object, object, object]:
    """(parameters, metrics, evaluation) after two compiled steps."""
    run = programs(model)
    state, step = run.start(jax.tree.map(jnp.copy, params)), run.compile_train()
    batch = jax.tree.map(lambda x, y: jnp.stack([x, y]), batch_of(), batch_of(seed=1))
    batch = jax.tree.map(lambda array, shape: jax.device_put(array, shape.sharding), batch, run.batch)
    key = jax.device_put(KEY, model.model.placement.replicated)
    for _ in range(2):
        state, metrics = step(state, frozen, batch, key)
    one = jax.tree.map(lambda array, shape: jax.device_put(array, shape.sharding), batch_of(seed=2), run.eval_batch)
    return jax.device_get((state.params, metrics, run.compile_eval()(state.params, frozen, one)))


def formats_of(format: QFormat, layers: int) -> dict[str, QFormat]:
    return {f"layers.{i}.attention.{name}": format for i in range(layers) for name in LAYERS}


@pytest.mark.parametrize(
    ("family", "layers", "remat_layers", "format"),
    [
        pytest.param("llama", 4, 1, INT4, marks=pytest.mark.slow),
        ("llama", 4, 2, nf4_format(32)),
        pytest.param("qwen3", 5, 2, INT4, marks=pytest.mark.slow),  # a period of two layers, twice, and one behind it
    ],
)
def test_a_step_has_the_same_numbers_bit_for_bit(family: str, layers: int, remat_layers: int, format: QFormat) -> None:
    windows = {"windows": (None, 12, None, 12, None)} if family == "qwen3" else {}
    config = dataclasses.replace(CONFIGS[family], num_layers=layers, dtype="bfloat16", **windows)
    formats = formats_of(format, layers)
    lora = LoraConfig(rank=4, alpha=8, dropout=0.1, use_dora=format is INT4)
    model, params, frozen = lora_model(lora, config=config, formats=formats, remat="full", remat_layers=remat_layers)
    there, weights = on_host(model, frozen)
    assert all(is_on_host(array) == name.startswith("layers") for name, array in weights.weights.items())
    jax.tree.map(np.testing.assert_array_equal, trained(model, params, frozen), trained(there, params, weights))


@pytest.mark.slow  # Bits are equal only where XLA compiles as it does by default (RYZJAX_TESTS_COMPILER).
@pytest.mark.parametrize("layout", ["tp", "fsdp_tp"])
def test_over_several_devices_each_fetches_its_part(layout: str, tmp_path: Path) -> None:
    root = Path(__file__).parents[2] / "configs" / "sharding"
    text = re.sub(r"= -1\b", "= 2", (root / f"{layout}.toml").read_text())
    (tmp_path / "two.toml").write_text(text)
    placement = Placement(Layout.load(str(tmp_path / "two.toml")), jax.devices())
    assert placement.num_devices > 1
    config = dataclasses.replace(CONFIGS["llama"], num_layers=4)
    model, params, frozen = lora_model(config=config, placement=placement, remat="full", remat_layers=2)
    there, weights = on_host(model, frozen)
    name = "layers[0::1].mlp.down.weight"
    assert weights.weights[name].sharding == host_sharding(frozen.weights[name].sharding)
    assert weights.weights[name].sharding.shard_shape(frozen.weights[name].shape) != frozen.weights[name].shape
    jax.tree.map(np.testing.assert_array_equal, trained(model, params, frozen), trained(there, params, weights))


def test_stacks_and_their_layers_and_the_fingerprint() -> None:
    config = dataclasses.replace(CONFIGS["qwen3"], num_layers=5, windows=(None, 12, None, 12, None), dtype="bfloat16")
    model, _, frozen = lora_model(config=config, formats=formats_of(nf4_format(32), 5))
    plain = dict(model.stacked.unstack(frozen.weights))
    there = StackedModel(model.model.with_layers_on_host())
    weights = there.stack(dict(plain))
    for name, array in weights.items():
        assert array.sharding == there.weights[name].sharding and array.dtype == there.weights[name].stored_dtype
        assert is_host_sharding(array.sharding) == name.startswith("layers")
        np.testing.assert_array_equal(array, frozen.weights[name])
    for name, array in there.unstack(weights):
        assert array.dtype == plain[name].dtype
        np.testing.assert_array_equal(array, plain[name])
    assert base_fingerprint(weights) == base_fingerprint(frozen.weights)
    assert not any(map(is_on_host, jax.tree.leaves(to_device(weights))))


def test_a_gpu_is_told_to_fetch_each_layer_inside_the_loops() -> None:
    """The step lowered for CUDA: layers come in host memory, and go to the device a slice at a time."""
    config = dataclasses.replace(CONFIGS["llama"], num_layers=4, dtype="bfloat16")
    model, _, _ = lora_model(config=config, formats=formats_of(INT4, 4), remat="full", remat_layers=2)
    run = programs(dataclasses.replace(model, stacked=StackedModel(model.model.with_layers_on_host())))
    text = run.trace_train().lower(lowering_platforms=("cuda",)).as_text()
    inputs = text[text.index("@main") : text.index("-> (")]
    arrays = [name for name in run.frozen.weights if name.startswith("layers")]
    assert inputs.count('mhlo.memory_kind = "pinned_host"') == len(arrays)
    assert '"pinned_host"' not in text[text.index("-> (") :]  # nothing but arguments
    # What main itself annotates is its results. Ahead of both passes, and inside their three loops: forward; computed
    # again, backward.
    inner = "".join(part for part in text.split("func.func") if "@main" not in part)
    annotated = re.findall(r'@annotate_device_placement.*_xla_buffer_placement = "(\w+)".*: \((tensor<[^>]*>)\)', inner)
    assert [memory for memory, _ in annotated] == ["device"] * 5 * len(arrays)
    layer = re.compile(r"tensor<(\d+x){0,2}(ui8|ui16|f32)>")
    assert all(layer.fullmatch(shape) for _, shape in annotated), "more than a layer's slice is copied"


def run(model: Path, rows: Path, out: Path, *, base: dict, lora: LoraConfig | None = None, **train: object):
    return finetune(
        BaseConfig(model=str(model), dtype="float32", **base),
        DataConfig(data=(str(rows),), sequence_tokens=64),
        lora=lora or LoraConfig(rank=4, alpha=8),
        optimizer=OptimizerConfig(learning_rate=2e-2, warmup_steps=0),
        train=TrainConfig(**({"batch_rows": 2, "out": str(out), "save_every": 3} | train)),  # pyright: ignore
        show_progress=False,
    )


def losses(out: Path) -> list[float | None]:
    return [row.get("loss") for row in read_log(out / "metrics.jsonl")]


@pytest.mark.parametrize(
    ("weights", "init"),
    [
        pytest.param("auto", "default", marks=pytest.mark.slow),
        ("nf4", "default"),
        pytest.param("auto", "pissa", marks=pytest.mark.slow),
        pytest.param("int4", "loftq", marks=pytest.mark.slow),
    ],
)
def test_finetune_and_going_on_with_the_base_elsewhere(
    weights: str, init: str, tiny_model: Path, rows_file: Path, tmp_path: Path
) -> None:
    base = {"weights": weights, "weights_group": 32}
    lora = LoraConfig(rank=4, alpha=8, init=init)  # pyright: ignore[reportArgumentType]
    run(tiny_model, rows_file, tmp_path / "device", base=base, lora=lora, max_steps=6)
    run(tiny_model, rows_file, tmp_path / "host", base=base, lora=lora, max_steps=6, offload="frozen")
    assert losses(tmp_path / "device") == losses(tmp_path / "host")
    run(tiny_model, rows_file, tmp_path / "host", base=base, lora=lora, max_steps=8, resume=True)
    assert len(losses(tmp_path / "host")) == 8


def plan(tmp_path: Path, *, offload: str, layers: int, weights: str = "int4", **shape: object) -> MemoryPlan:
    """Of rank 8 on all linear layers with 8-bit Adam, 1 x 512 tokens."""
    raw = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": 1024,
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "hidden_act": "silu",
        "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "torch_dtype": "bfloat16",
    }
    path = tmp_path / "config.json"
    path.write_text(json.dumps(raw | shape))
    return plan_training(
        BaseConfig(model=str(path), load_format="dummy", weights=weights, weights_group=128),  # pyright: ignore
        lora=LoraConfig(rank=8, alpha=16),
        optimizer=OptimizerConfig(optimizer="adamw8bit"),
        train=TrainConfig(
            batch_rows=1,
            remat_layers=4,
            mlp_rows=128,
            loss_chunk_tokens=64,
            offload=offload,  # pyright: ignore
        ),
        sequence_tokens=512,
    )


@pytest.mark.slow
def test_a_plan_counts_layers_on_the_host_apart(tmp_path: Path) -> None:
    device, host = (plan(tmp_path, offload=offload, layers=8) for offload in ("none", "frozen"))
    assert host.host_bytes == device.frozen_bytes["layers"] > 0 and device.host_bytes == 0
    assert host.frozen_bytes == {"layers": 0, "embedding and head": device.frozen_bytes["embedding and head"]}
    in_flight = 2 * host.host_bytes / 8
    assert host.total_bytes < device.total_bytes - device.frozen_bytes["layers"] + 1.05 * in_flight
    assert any("--offload frozen" in remedy for remedy in device.remedies)
    assert not any("--offload" in remedy for remedy in host.remedies)
    # More layers cost the device what belongs to the adapter alone, its bfloat16 gradients, and every 4th input.
    more = plan(tmp_path, offload="frozen", layers=16)
    assert more.host_bytes == 2 * host.host_bytes
    adapter = more.trained_bytes - host.trained_bytes
    inputs = 2 * (2 * 512 * 256)
    assert more.temporary_bytes - host.temporary_bytes < 1.02 * (adapter / 2 + inputs)
    assert more.total_bytes - host.total_bytes < 1.02 * (2.04 * adapter + inputs)


@pytest.mark.slow
@pytest.mark.parametrize("weights", ["int4", "nf4"])
def test_eight_billion_parameters_are_tuned_in_less_than_four_gigabytes(weights: str, tmp_path: Path) -> None:
    """The shape of Llama 3.1 8B, 1 x 512, as XLA counts the streamed step for a CPU."""
    shape = {"vocab_size": 128_256, "hidden_size": 4096, "intermediate_size": 14_336, "num_attention_heads": 32}
    found = plan(tmp_path, offload="frozen", layers=32, weights=weights, **shape, num_key_value_heads=8)
    assert found.host_bytes > 3.5e9, "the base is not all there"
    assert found.total_bytes < 4.0e9
    on_device = plan(tmp_path, offload="none", layers=32, weights=weights, **shape, num_key_value_heads=8)
    streamed = on_device.total_bytes - on_device.frozen_bytes["layers"] + 2 * found.host_bytes // 32
    assert streamed < 4.0e9 and abs(found.total_bytes - streamed) < found.host_bytes / 16


@dataclass(frozen=True)
class Memory:
    kind: str


@dataclass(frozen=True)
class Device:
    platform: str = "metal"

    def addressable_memories(self) -> list[Memory]:
        return [Memory("device")]


class Mesh:
    devices = np.array([Device()], dtype=object)


class Bare:
    mesh = Mesh()


def test_devices_without_pinned_memory_are_refused() -> None:
    check_host_memory(ONE)
    with pytest.raises(ConfigError, match=r"\(metal\) has no pinned_host memory, only device: .*offload='frozen'"):
        check_host_memory(Bare())  # pyright: ignore[reportArgumentType]


def test_settings_that_exclude_each_other(tmp_path: Path, tiny_model: Path, rows_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs remat='full'.*'dots'"):
        TrainConfig(offload="frozen", remat="dots")
    with pytest.raises(ConfigError, match="all weights are trained"):
        plan_training(
            BaseConfig(model=str(tiny_model)),
            lora=None,
            optimizer=OptimizerConfig(),
            train=TrainConfig(offload="frozen"),
            sequence_tokens=16,
        )
    with pytest.raises(ConfigError, match="all weights are trained"):
        finetune(
            BaseConfig(model=str(tiny_model)),
            DataConfig(data=(str(rows_file),), sequence_tokens=16),
            lora=None,
            train=TrainConfig(offload="frozen", out=str(tmp_path)),
            show_progress=False,
        )
