"""BaseConfig and TrainConfig: the model that is trained, and how a run goes; flags and TOML keys derive from them."""

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
    """The model that is trained, or that an adapter is trained beside."""

    model: Annotated[Positional[str], tyro_arg(metavar="MODEL")]
    """Local directory, or Hugging Face id."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    load_format: Literal["auto", "safetensors", "gguf", "orbax", "dummy"] = "auto"
    """How the weights are stored; dummy, for a plan: a config.json will do."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """That the model is computed in; auto takes the checkpoint's (float16 becomes bfloat16), or float32 on a CPU where
    that is faster."""
    layout: str = "single"
    """Sharding: a shipped layout's name (fsdp_tp, tp, tp_dp, ...) or a TOML file."""
    weights: Literal["auto", "bf16", "int8", "int4", "nf4"] = "auto"
    """Of the frozen base: auto as stored, bf16 plain, or rounded as they are loaded: QLoRA. int4, or nf4: NormalFloat4
    with double quantization, as bitsandbytes has it."""
    weights_group: int = 64
    """In features that share a scale of int8, int4 and nf4."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """A run.

    Raises:
      ConfigError: a value is out of range, or two contradict each other.
    """

    out: str = "run"
    """Folder of the run: checkpoints, logs, plot, and what it makes. Made if it is not there."""
    objective: Literal["sft", "dpo", "orpo"] = "sft"
    """sft (also pre-training), or preferences by dpo (arXiv:2305.18290) or orpo (arXiv:2403.07691)."""
    beta: float = 0.1
    """Of dpo: how dear it is to leave the reference; of orpo: weight of the odds ratio."""
    label_smoothing: float = 0.0
    """Of dpo: probability that a pair is the wrong way round."""
    max_steps: int | None = None
    """Updates of the run; by default as many as `epochs` have batches."""
    epochs: int = 1
    """Passes over the data, where `max_steps` is not given."""
    batch_rows: int = 4
    """Rows of `sequence_tokens` that a step computes at once, over all devices; two a pair for preferences."""
    accumulate: int = 1
    """Times `batch_rows` of an update: their gradients are summed."""
    seed: int = 0
    """Of initial weights and dropout."""
    remat: Literal["none", "dots", "full"] = "full"
    """What a layer keeps for the backward pass: all (none: fastest), its products (dots), its input (full: least)."""
    remat_layers: int = 1
    """With full: keep the input of every n-th layer alone."""
    mlp_rows: int | None = None
    """Tokens that pass an MLP at a time, to save memory."""
    offload: Literal["none", "frozen"] = "none"
    """frozen: the layers of the frozen base stay in pinned memory of the host, and come to the device one by one."""
    loss_chunk_tokens: int = 256
    """Tokens whose logits are in memory at once."""
    eval_every: int | None = None
    """Steps between evaluations; by default ten in a run, where there is data for them."""
    eval_batches: int | None = None
    """Batches of an evaluation; by default all of its data."""
    patience: int | None = None
    """Stop after so many evaluations without a better loss."""
    min_delta: float = 0.0
    """What counts as better: a loss lower by more than this."""
    save_every: int | None = None
    """Steps between checkpoints; by default ten in a run. Each evaluation that is the best so far is saved, too."""
    keep: int = 2
    """Latest checkpoints that stay; the best one stays as well."""
    log_every: int = 1
    """Steps between log lines."""
    resume: bool = False
    """Go on from the latest checkpoint in `out`, or begin where it has none yet; the losses are those of a run that was
    never stopped."""
    export: Export = "auto"
    """Which weights to write at the end: auto takes the best where there was an evaluation, else the last."""
    tensorboard: bool = False
    """Also log for TensorBoard, to `out`/tensorboard."""
    wandb_project: str | None = None
    """Also log to this project of Weights & Biases."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_rows", "accumulate", "remat_layers", "loss_chunk_tokens", "keep", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}; expected 1 or more")
        for name in ("max_steps", "mlp_rows", "eval_every", "eval_batches", "patience", "save_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value}; expected 1 or more, or none at all")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"seed={self.seed}; expected 0 to 2^32 - 1")
        if self.remat_layers > 1 and self.remat != "full":
            raise ConfigError(f"remat_layers={self.remat_layers} needs remat='full'; it is {self.remat!r}")
        if self.offload == "frozen" and self.remat != "full":
            raise ConfigError(
                f"offload='frozen' needs remat='full', else every layer stays on the device for the backward pass; "
                f"remat is {self.remat!r}"
            )

    def check_trains_all(self) -> None:
        """That these settings are of a run in which nothing is frozen.

        Raises:
          ConfigError: they are not.
        """
        if self.offload == "frozen":
            raise ConfigError(
                "offload='frozen' keeps a frozen base on the host, and where all weights are trained there is none; "
                "train an adapter, or leave it out"
            )

    @property
    def rows_per_update(self) -> int:
        """Rows of `sequence_tokens` an update sees."""
        return self.batch_rows * self.accumulate
