"""Settings of a training run: BaseConfig names the model, TrainConfig says how the run goes. CLI flags and TOML keys
are derived from the fields."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional
from tyro.conf import arg as tyro_arg

from ryzjax.errors import ConfigError

__all__ = ["BaseConfig", "Export", "TrainConfig"]

Export = Literal["auto", "last", "best"]


@dataclass(frozen=True, kw_only=True)
class BaseConfig:
    """The model to train, or the frozen base of an adapter."""

    model: Annotated[Positional[str], tyro_arg(metavar="MODEL")]
    """Local directory or Hugging Face id of the model."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    load_format: Literal["auto", "safetensors", "gguf", "orbax", "dummy"] = "auto"
    """File format of the weights. dummy needs only a config.json, for --plan."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype to compute in. auto takes the checkpoint's dtype (bfloat16 for float16), or float32 on a CPU that trains
    faster in float32."""
    layout: str = "single"
    """Sharding layout: the name of a shipped layout (fsdp_tp, tp, tp_dp, ...) or a TOML file."""
    weights: Literal["auto", "bf16", "int8", "int4", "nf4"] = "auto"
    """Format of the frozen base weights. auto keeps the stored format, bf16 loads plain weights; int8, int4 and nf4
    (NormalFloat4 with double quantization, as in bitsandbytes) quantize while loading, for QLoRA."""
    weights_group: int = 64
    """Group size of int8, int4 and nf4: input features that share a scale."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How a run trains, evaluates and saves.

    Raises:
      ConfigError: A value is out of range, or two values contradict each other.
    """

    out: str = "run"
    """Folder of the run, for checkpoints, logs, the loss plot and the result. Created if missing."""
    objective: Literal["sft", "dpo", "orpo"] = "sft"
    """Loss: sft for fine-tuning and pre-training; dpo (arXiv:2305.18290) or orpo (arXiv:2403.07691) for preference
    pairs."""
    beta: float = 0.1
    """For dpo, the strength of the pull towards the reference model. For orpo, the weight of the odds ratio."""
    label_smoothing: float = 0.0
    """For dpo, the probability that a pair is labelled the wrong way round."""
    max_steps: int | None = None
    """Updates of the run. Defaults to the batches of `epochs` passes over the data."""
    epochs: int = 1
    """Passes over the data, if `max_steps` is not set."""
    batch_rows: int = 4
    """Rows of `sequence_tokens` computed at once, over all devices. A preference pair takes two rows."""
    accumulate: int = 1
    """Batches of `batch_rows` per update. Their gradients are summed."""
    seed: int = 0
    """Seed of new weights and of dropout."""
    remat: Literal["none", "dots", "full"] = "full"
    """What a layer keeps for the backward pass: everything (none, the fastest), its matrix products (dots), or only its
    input (full, the least memory)."""
    remat_layers: int = 1
    """With remat full: keep only the input of every n-th layer."""
    mlp_rows: int | None = None
    """Tokens that pass through an MLP at a time, to save memory."""
    offload: Literal["none", "frozen"] = "none"
    """frozen keeps the layers of the frozen base in pinned host memory and copies them to the device one by one."""
    loss_chunk_tokens: int = 256
    """Tokens whose logits are in memory at once."""
    eval_every: int | None = None
    """Steps between evaluations. Defaults to ten evaluations per run, if there is evaluation data."""
    eval_batches: int | None = None
    """Batches per evaluation. Defaults to all evaluation data."""
    patience: int | None = None
    """Stop after this many evaluations without a lower loss."""
    min_delta: float = 0.0
    """A loss counts as lower only if it falls by more than this."""
    save_every: int | None = None
    """Steps between checkpoints. Defaults to ten checkpoints per run. Each new best evaluation is saved too."""
    keep: int = 2
    """Number of latest checkpoints to keep. The best one is kept too."""
    log_every: int = 1
    """Steps between log lines."""
    resume: bool = False
    """Resume from the latest checkpoint in `out`, or start if there is none yet. The losses equal those of an
    uninterrupted run."""
    export: Export = "auto"
    """Weights to write at the end. auto takes the best evaluated ones if there was an evaluation, else the last."""
    tensorboard: bool = False
    """Also log for TensorBoard, to `out`/tensorboard."""
    wandb_project: str | None = None
    """Also log to this Weights & Biases project."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_rows", "accumulate", "remat_layers", "loss_chunk_tokens", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected 1 or more")
        for name in ("max_steps", "mlp_rows", "eval_every", "eval_batches", "patience", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}; expected 1 or more, or leave it unset")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed}; expected 0 to 2^32 - 1")
        if self.remat_layers > 1 and self.remat != "full":
            raise ConfigError(f"remat_layers={self.remat_layers} needs remat='full'; it is {self.remat!r}")
        if self.offload == "frozen" and self.remat != "full":
            raise ConfigError(
                f"offload='frozen' needs remat='full': otherwise every layer stays on the device for the backward "
                f"pass; remat is {self.remat!r}"
            )

    def check_trains_all(self) -> None:
        """Checks that the settings suit a run that trains every weight.

        Raises:
          ConfigError: `offload` is "frozen".
        """
        if self.offload == "frozen":
            raise ConfigError(
                "offload='frozen' keeps a frozen base on the host, but all weights are trained in this run; "
                "train an adapter instead, or leave it out"
            )

    @property
    def rows_per_update(self) -> int:
        """Rows of `sequence_tokens` in one update."""
        return self.batch_rows * self.accumulate
