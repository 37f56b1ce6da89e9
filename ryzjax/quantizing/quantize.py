"""quantize: turns a plain checkpoint into a 4- or 8-bit one, one block at a time.

The calibration text runs through the plain model and, at the same time, through the part that is quantized so far. For
each block and each group of layers with the same inputs, the inputs in both models are observed. The layers are
quantized so that their outputs come nearest to the plain model's, and the next group sees the result.

Memory holds one block, its moments, and the hidden states of the text. A run that was killed resumes at the block that
it had reached.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import jax.numpy as jnp
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ryzjax.checkpoint.open_checkpoint import OpenCheckpoint
from ryzjax.checkpoint.quantized.config import compressed_tensors_config
from ryzjax.checkpoint.quantized.encoded_matrix import EncodedMatrix
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.errors import ConfigError
from ryzjax.loading.load import check_checkpoint, read_weights
from ryzjax.loading.text_files import copy_text_files
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import abstract_model
from ryzjax.qarray import QFormat
from ryzjax.quant.encode_matrix import check_weights
from ryzjax.quant.recipe import Recipe
from ryzjax.quant.scheme import Scheme
from ryzjax.quantizing.block_runner import BlockRunner
from ryzjax.quantizing.calibration import Calibration
from ryzjax.quantizing.hidden_states import HiddenStates, HiddenStatesPair, embed_sequences
from ryzjax.quantizing.layer_report import LayerReport, report_of_plain, report_of_quantized
from ryzjax.quantizing.quantize_block import BlockQuantizer
from ryzjax.quantizing.quantize_group import MemberResult, quantize_group
from ryzjax.quantizing.shards import Shards
from ryzjax.quantizing.workspace import Workspace
from ryzjax.sharding import Placement

__all__ = ["QuantizedModel", "quantize"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """A quantized checkpoint that is written, but still has its temporary name.

    Attributes:
      folder: The checkpoint under its temporary name. `finish` renames it.
      out: The final name.
      reports: One report for each linear layer, in the model's order.
      wall_s: Seconds that quantizing took, in this run and the interrupted runs that it resumed.
    """

    folder: Path
    out: Path
    reports: tuple[LayerReport, ...]
    wall_s: float

    def finish(self, extra: Mapping[str, str] | None = None) -> Path:
        """Writes further text files into the folder and gives it its final name, which it returns.

        Args:
          extra: File name -> text.
        """
        for name, text in (extra or {}).items():
            (self.folder / name).write_text(text, encoding="utf-8")
        self.folder.replace(self.out)
        return self.out


def quantize(
    source: CheckpointSource,
    config: ModelConfig,
    placement: Placement,
    recipe: Recipe,
    out: Path,
    *,
    calibration: Calibration | None = None,
    bits: Mapping[str, int] | None = None,
    show_progress: bool = True,
) -> QuantizedModel:
    """Quantizes a checkpoint.

    Args:
      source: The checkpoint, in plain safetensors.
      config: The model's config, in the dtype that the checkpoint is stored in.
      placement: The devices that run the blocks, and the layout over them.
      recipe: How to quantize.
      out: The folder to create. Until `QuantizedModel.finish` it is called `<out>.partial`.
      calibration: Calibration text; may be None for methods that need no data.
      bits: Layer name -> bits, from `mix_of_bits`; by default the recipe's bits.
      show_progress: Whether to show a progress bar on stderr.

    Raises:
      ConfigError: The folder exists, the source is quantized already or not safetensors, a weight is NaN or infinite,
        or calibration text is missing.
      CheckpointError: A file is damaged, or the disk is full.
    """
    if source.weight_format != "safetensors":
        raise ConfigError(
            f"{source.path} is {source.weight_format}; quantizing needs plain safetensors: name a model in that format"
        )
    if out.exists():
        raise ConfigError(f"{out} exists; name a folder that does not exist yet")
    if recipe.needs_data and calibration is None:
        raise ConfigError(f"method {recipe.method} needs calibration text; give some, or use method rtn or hqq")
    model = abstract_model(config, placement)
    with OpenCheckpoint(source, config) as checkpoint:
        if checkpoint.quantization(model):
            raise ConfigError(f"{source.path} is quantized already; start from the original model")
        check_checkpoint(checkpoint, model)
        run = _Run(checkpoint, model, recipe, out, calibration, bits)
        return run.all(show_progress)


class _Run:
    """One call of `quantize`: runs the blocks, saves progress after each, and writes the files around them."""

    def __init__(
        self,
        checkpoint: OpenCheckpoint,
        model: AbstractModel,
        recipe: Recipe,
        out: Path,
        calibration: Calibration | None,
        bits: Mapping[str, int] | None,
    ):
        self.checkpoint = checkpoint
        self.model = model
        self.recipe = recipe
        self.out = out
        self.calibration = calibration
        self.partial = out.with_name(out.name + ".partial")
        self.partial.mkdir(parents=True, exist_ok=True)
        identity = [recipe.key(), calibration.sha256 if calibration else "", str(checkpoint.source.path.resolve())]
        identity.append(json.dumps(bits, sort_keys=True))
        self.workspace = Workspace(self.partial, hashlib.sha256("\n".join(identity).encode()).hexdigest())
        self.shards = Shards(self.partial, checkpoint, model)
        self.reports: list[LayerReport] = []
        self.formats: dict[str, QFormat] = {}
        runner = None
        if calibration is not None:
            runner = BlockRunner(model, sequence_tokens=calibration.tokens.shape[1])
        self.blocks = BlockQuantizer(checkpoint, model, recipe, bits=bits, runner=runner)

    def all(self, show_progress: bool) -> QuantizedModel:
        """Quantizes every block, then writes the weights outside the blocks and the config."""
        started = time.perf_counter()
        layers = self.model.config.num_layers
        first, pairs, before_s = self._start()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        with Progress(*columns, TimeRemainingColumn(), console=console, disable=not show_progress) as bar:
            task = bar.add_task("Quantizing blocks", total=layers, completed=first)
            for layer in range(first, layers):
                self._block(layer, pairs)
                spent_s = before_s + time.perf_counter() - started
                self._save(layer + 1, pairs, spent_s)
                bar.update(task, advance=1)
            self._outside_blocks()
        self._write_config()
        self.workspace.clear()
        order = {name: i for i, name in enumerate(self.model.linears)}
        return QuantizedModel(
            folder=self.partial,
            out=self.out,
            reports=tuple(sorted(self.reports, key=lambda report: order[report.name])),
            wall_s=before_s + time.perf_counter() - started,
        )

    def _start(self) -> tuple[int, dict[str, HiddenStatesPair], float]:
        """Returns (first block to quantize, hidden states at its entry, seconds spent by interrupted runs)."""
        state = self.workspace.load()
        if state is not None:
            return self._resume(state)
        if any(self.partial.iterdir()):
            _log.info("%s belongs to another run; starting over", self.partial)
            shutil.rmtree(self.partial)
            self.partial.mkdir()
        pairs = {}
        if self.calibration is not None:
            table = read_weights(self.checkpoint, self.model, ("embed.weight",))
            for kind, tokens in (("calibration", self.calibration.tokens), ("held_out", self.calibration.held_out)):
                states = embed_sequences(self.model, table, tokens)
                pairs[kind] = HiddenStatesPair(quantized=HiddenStates(hidden=states.hidden.copy()), plain=states)
        return 0, pairs, 0.0

    def _resume(self, state: Mapping[str, object]) -> tuple[int, dict[str, HiddenStatesPair], float]:
        """Restores what `_save` saved."""
        layer = cast("int", state["layer"])
        _log.info("%s: resuming at block %d", self.partial, layer)
        self.reports = [
            LayerReport(**{**report, "notes": tuple(report["notes"]), "shape": tuple(report["shape"])})
            for report in cast("list[dict]", state["reports"])
        ]
        formats = cast("dict[str, dict]", state["formats"])
        self.formats = {name: QFormat(**fields) for name, fields in formats.items()}
        kinds = ("calibration", "held_out") if self.calibration is not None else ()
        dtype = self.model.config.dtype
        pairs = {
            kind: HiddenStatesPair(
                quantized=self.workspace.hidden_states(kind, layer, dtype),
                plain=self.workspace.hidden_states(f"{kind}-plain", layer, dtype),
            )
            for kind in kinds
        }
        return layer, pairs, cast("float", state["wall_s"])

    def _save(self, layer: int, pairs: Mapping[str, HiddenStatesPair], wall_s: float) -> None:
        """Saves the state at the entry of block `layer`."""
        states = {kind: pair.quantized for kind, pair in pairs.items()}
        states |= {f"{kind}-plain": pair.plain for kind, pair in pairs.items()}
        self.workspace.save(
            {
                "reports": [dataclasses.asdict(report) for report in self.reports],
                "formats": {name: dataclasses.asdict(format) for name, format in self.formats.items()},
                "wall_s": wall_s,
            },
            states,
            layer,
        )

    def _block(self, layer: int, pairs: Mapping[str, HiddenStatesPair]) -> None:
        """Quantizes and writes one block, and runs the hidden states through it."""
        block = self.blocks.quantize(layer, pairs)
        for name, (scheme, result) in block.results.items():
            self._report(name, scheme, result)
        self._report_plain(layer, block.encoded)
        self.shards.write(layer, block.encoded, block.changed_weights())
        for pair in pairs.values():
            self.blocks.advance(pair, layer, block)

    def _report(self, name: str, scheme: Scheme, result: MemberResult) -> None:
        self.formats[name] = result.encoded.format
        wanted = self.recipe.scheme(self.blocks.bits_of(name))
        module = self.shards.module(name)
        self.reports.append(report_of_quantized(name, module, wanted=wanted, scheme=scheme, result=result))

    def _report_plain(self, layer: int | None, encoded: Mapping[str, EncodedMatrix]) -> None:
        """Reports on the linear layers of a block, or of none (`layer` is None), that were not quantized."""
        for name in self.model.layer_linears(layer):
            if name not in encoded:
                shape = self.model.linears[name]
                module = "" if len(shape) == 3 else self.shards.module(name)
                self.reports.append(report_of_plain(name, module, self.model.weights[f"{name}.weight"], shape))

    def _outside_blocks(self) -> None:
        """Quantizes the head if the recipe asks for it, and writes everything that is in no block."""
        encoded: dict[str, EncodedMatrix] = {}
        bits = self.recipe.lm_head_bits
        if bits != 16 and "lm_head" in self.model.linears:
            w = read_weights(self.checkpoint, self.model, ("lm_head.weight",))["lm_head.weight"].astype(jnp.float32)
            check_weights("lm_head", w)
            scheme = dataclasses.replace(self.recipe.scheme(bits), activations=None).fitted(w.shape[1])
            group = quantize_group(
                {"lm_head": w}, {"lm_head": scheme}, "rtn", None, model_dtype=self.model.config.dtype, can_scale=False
            )
            result = group.members["lm_head"]
            encoded["lm_head"] = result.encoded
            self._report("lm_head", scheme, result)
        self._report_plain(None, encoded)
        self.shards.write(self.model.config.num_layers, encoded, {})

    def _write_config(self) -> None:
        source = self.checkpoint.source
        by_module = {self.shards.module(name): format for name, format in self.formats.items()}
        plain = [report.module for report in self.reports if report.method == "none" and report.module]
        self.shards.write_index()
        copy_text_files(source.directory, self.partial)
        if source.generation is not None:
            text = json.dumps(source.generation, indent=1)
            (self.partial / "generation_config.json").write_text(text, encoding="utf-8")
        raw = {**source.config, "quantization_config": compressed_tensors_config(by_module, plain)}
        (self.partial / "config.json").write_text(json.dumps(raw, indent=1), encoding="utf-8")
