"""quantize: a plain checkpoint becomes a 4- or 8-bit one, a block at a time.

The calibration text runs twice side by side, through the plain model and through what is quantized of it so far. For
each block and each group of layers with the same inputs: both inputs are observed, the layers are quantized so that
their outputs come nearest to the plain model's, and the next group sees what that did. Memory holds a block, its
moments and the text's hidden states, and a run that was killed goes on with the block it was at.
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

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ryzjax.checkpoint.opened import OpenCheckpoint
from ryzjax.checkpoint.quantized.config import compressed_tensors_config
from ryzjax.checkpoint.quantized.encoded import Encoded
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.checkpoint.stored import Stored
from ryzjax.errors import ConfigError
from ryzjax.loading.load import check_checkpoint, read_weights
from ryzjax.loading.text_files import copy_text_files
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import AbstractModel, abstract_model
from ryzjax.qarray import QFormat
from ryzjax.quant.matrix import check_weights
from ryzjax.quant.recipe import Recipe
from ryzjax.quant.scheme import Scheme
from ryzjax.quantizing.blocks import BlockRunner
from ryzjax.quantizing.calibration import Calibration
from ryzjax.quantizing.group import GroupResult, MemberResult, Moments, quantize_group
from ryzjax.quantizing.inputs import InputGroup, input_groups, norm_offset
from ryzjax.quantizing.report import LayerReport
from ryzjax.quantizing.shards import Shards
from ryzjax.quantizing.streams import Pair, Stream, Workspace, embed_sequences
from ryzjax.sharding import Placement

__all__ = ["QuantizedModel", "quantize"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class QuantizedModel:
    """What was written.

    Attributes:
      folder: the checkpoint, still under its partial name: `finish` makes it one that loads.
      out: its name at last.
      reports: a linear layer each.
      wall_s: seconds, of this run and those it went on from.
    """

    folder: Path
    out: Path
    reports: tuple[LayerReport, ...]
    wall_s: float

    def finish(self, extra: Mapping[str, str] | None = None) -> Path:
        """Gives the folder its name; `extra` (file name -> text) goes into it before."""
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
      source: plain safetensors.
      config: of the model, in the dtype it was stored in.
      placement: where blocks run.
      recipe: what to do.
      out: folder to be made; until `finish` it is called `<out>.partial`.
      calibration: text; may be None for the methods that need none.
      bits: linear layer -> bits, of a mix that was worked out; the recipe's by default.
      show_progress: a bar on stderr.

    Raises:
      ConfigError: the folder is taken, the source is quantized already, weights are not finite, or calibration text
        is missing.
      CheckpointError: damaged files, or a disk that is full.
    """
    if source.weight_format != "safetensors":
        raise ConfigError(
            f"{source.path} is {source.weight_format}; quantizing starts from plain safetensors; take those"
        )
    if out.exists():
        raise ConfigError(f"{out} exists; name a folder that does not exist yet")
    if recipe.needs_data and calibration is None:
        raise ConfigError(f"method {recipe.method} needs calibration text; give some, or take method rtn or hqq")
    model = abstract_model(config, placement)
    with OpenCheckpoint(source, config) as checkpoint:
        if checkpoint.quantization(model):
            raise ConfigError(f"{source.path} is quantized already; start from the original model")
        check_checkpoint(checkpoint, model)
        run = _Run(checkpoint, model, recipe, out, calibration, bits)
        return run.all(show_progress)


class _Run:
    """One run; see `quantize`."""

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
        self.bits = bits
        self.partial = out.with_name(out.name + ".partial")
        self.partial.mkdir(parents=True, exist_ok=True)
        identity = [recipe.key(), calibration.sha256 if calibration else "", str(checkpoint.source.path.resolve())]
        identity.append(json.dumps(bits, sort_keys=True))
        self.workspace = Workspace(self.partial, hashlib.sha256("\n".join(identity).encode()).hexdigest())
        self.shards = Shards(self.partial, checkpoint, model)
        self.reports: list[LayerReport] = []
        self.formats: dict[str, QFormat] = {}
        self.runner: BlockRunner | None = None
        if calibration is not None:
            self.runner = BlockRunner(model, sequence_tokens=calibration.tokens.shape[1])

    def all(self, show_progress: bool) -> QuantizedModel:
        """Every block, then what is in none."""
        started = time.perf_counter()
        layers = self.model.config.num_layers
        first, pairs, before_s = self._begin()
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(stderr=True)
        with Progress(*columns, TimeRemainingColumn(), console=console, disable=not show_progress) as bar:
            task = bar.add_task("Quantizing blocks", total=layers, completed=first)
            for layer in range(first, layers):
                self._block(layer, pairs)
                spent_s = before_s + time.perf_counter() - started
                self._save(layer + 1, pairs, spent_s)
                bar.update(task, advance=1)
            self._outside()
        self._write_config()
        self.workspace.clear()
        order = {name: i for i, name in enumerate(self.model.linears)}
        return QuantizedModel(
            folder=self.partial,
            out=self.out,
            reports=tuple(sorted(self.reports, key=lambda report: order[report.name])),
            wall_s=before_s + time.perf_counter() - started,
        )

    def _begin(self) -> tuple[int, dict[str, Pair], float]:
        """(first block that is not done, hidden states at its entry, seconds spent before)."""
        state = self.workspace.load()
        if state is not None:
            layer = cast("int", state["layer"])
            _log.info("%s: going on with block %d", self.partial, layer)
            self.reports = [
                LayerReport(**{**report, "notes": tuple(report["notes"]), "shape": tuple(report["shape"])})
                for report in cast("list[dict]", state["reports"])
            ]
            formats = cast("dict[str, dict]", state["formats"])
            self.formats = {name: QFormat(**fields) for name, fields in formats.items()}
            kinds = ("calibration", "held_out") if self.runner is not None else ()
            dtype = self.model.config.dtype
            pairs = {
                kind: Pair(
                    quantized=self.workspace.stream(kind, layer, dtype),
                    plain=self.workspace.stream(f"{kind}-plain", layer, dtype),
                )
                for kind in kinds
            }
            return layer, pairs, cast("float", state["wall_s"])
        if any(self.partial.iterdir()):
            _log.info("%s is of another run; beginning anew", self.partial)
            shutil.rmtree(self.partial)
            self.partial.mkdir()
        pairs = {}
        if self.calibration is not None:
            table = read_weights(self.checkpoint, self.model, ("embed.weight",))
            for kind, tokens in (("calibration", self.calibration.tokens), ("held_out", self.calibration.held_out)):
                stream = embed_sequences(self.model, table, tokens)
                pairs[kind] = Pair(quantized=Stream(hidden=stream.hidden.copy()), plain=stream)
        return 0, pairs, 0.0

    def _save(self, layer: int, pairs: Mapping[str, Pair], wall_s: float) -> None:
        streams = {kind: pair.quantized for kind, pair in pairs.items()}
        streams |= {f"{kind}-plain": pair.plain for kind, pair in pairs.items()}
        self.workspace.save(
            {
                "reports": [dataclasses.asdict(report) for report in self.reports],
                "formats": {name: dataclasses.asdict(format) for name, format in self.formats.items()},
                "wall_s": wall_s,
            },
            streams,
            layer,
        )

    def _block(self, layer: int, pairs: Mapping[str, Pair]) -> None:
        prefix = f"layers.{layer}."
        names = [name for name in self.model.weights if name.startswith(prefix)]
        plain = read_weights(self.checkpoint, self.model, names)
        # What changes, as the quantized model will have it.
        weights = dict(plain)
        encoded: dict[str, Encoded] = {}
        changed: set[str] = set()
        outcomes: dict[str, tuple[Scheme, MemberResult]] = {}
        for group in input_groups(self.model, layer):
            schemes = self._schemes(layer, group)
            if not schemes:
                continue
            moments = self._moments(layer, group, weights, plain, pairs)
            result = self._group(prefix, group, schemes, weights, moments)
            if result.scales is not None:
                self._fold(prefix, group, result.scales, weights, encoded, changed)
            for member, outcome in result.members.items():
                name = prefix + member
                encoded[name] = outcome.encoded
                outcomes[name] = schemes[member], outcome
                weights[f"{name}.weight"] = self._float(outcome.encoded)
        for name, (scheme, outcome) in outcomes.items():
            self.formats[name] = encoded[name].format
            self.reports.append(self._report(name, scheme, outcome))
        self._report_rest(layer, encoded)
        self.shards.write(layer, encoded, {name: np.asarray(weights[name]) for name in changed})
        for pair in pairs.values():
            self._advance(pair.quantized, layer, weights, encoded)
            assert self.runner is not None
            pair.plain.advance(self.runner, layer, plain)

    def _float(self, encoded: Encoded) -> jax.Array:
        """A quantized weight as the model multiplies with it."""
        return jnp.asarray(encoded.dequantized(), self.model.config.dtype)

    def _advance(
        self, stream: Stream, layer: int, weights: Mapping[str, jax.Array], encoded: Mapping[str, Encoded]
    ) -> None:
        """Takes hidden states through the quantized block: as floats, but where activations are rounded too."""
        assert self.runner is not None
        if not any(matrix.format.activations for matrix in encoded.values()):
            stream.advance(self.runner, layer, weights)
            return
        formats = {name: matrix.format for name, matrix in encoded.items()}
        model = abstract_model(self.model.config, self.model.placement, formats)
        runner = BlockRunner(model, sequence_tokens=self.runner.sequence_tokens)
        quantized = {name: value for name, value in weights.items() if name.removesuffix(".weight") not in encoded}
        for name, matrix in encoded.items():
            array = matrix.qarray()
            for leaf in matrix.format.leaf_shapes(array.shape):
                quantized[f"{name}.weight.{leaf}"] = getattr(array, leaf)
        stream.advance(runner, layer, quantized)

    def _schemes(self, layer: int, group: InputGroup) -> dict[str, Scheme]:
        """Member -> scheme, of those that are to be quantized."""
        schemes = {}
        for member in group.members:
            name = f"layers.{layer}.{member}"
            bits = self._bits_of(name)
            if bits != 16:
                schemes[member] = self.recipe.scheme(bits).fitted(self.model.linears[name][-1])
        return schemes

    def _bits_of(self, name: str) -> int:
        bits = self.recipe.bits_of(name)
        return bits if bits == 16 or self.bits is None else self.bits.get(name, bits)

    def _moments(
        self,
        layer: int,
        group: InputGroup,
        weights: Mapping[str, jax.Array],
        plain: Mapping[str, jax.Array],
        pairs: Mapping[str, Pair],
    ) -> Moments | None:
        if self.runner is None:
            return None
        calibration, held_out = (
            pairs[kind].observe(self.runner, layer, group.observed, weights, plain, with_drift=kind == "held_out")
            for kind in ("calibration", "held_out")
        )
        return Moments(calibration=calibration, held_out=held_out)

    def _group(
        self,
        prefix: str,
        group: InputGroup,
        schemes: Mapping[str, Scheme],
        weights: Mapping[str, jax.Array],
        moments: Moments | None,
    ) -> GroupResult:
        own = {member: weights[f"{prefix}{member}.weight"].astype(jnp.float32) for member in schemes}
        for member, w in own.items():
            check_weights(prefix + member, w)
        can_scale = len(schemes) == len(group.members) and self._can_fold(prefix, group, weights)
        return quantize_group(
            own, schemes, self.recipe.method, moments, model_dtype=self.model.config.dtype, can_scale=can_scale
        )

    def _can_fold(self, prefix: str, group: InputGroup, weights: Mapping[str, jax.Array]) -> bool:
        """Whether what makes the inputs of a group can be divided by scales, and written back."""
        if group.fold is None or group.fold_is_norm:
            return group.fold is not None
        bias = f"{prefix}{group.fold}.bias"
        is_quantized = self._bits_of(prefix + group.fold) != 16
        return is_quantized and (bias not in weights or isinstance(self.checkpoint.stored(bias, self.model), Stored))

    def _fold(
        self,
        prefix: str,
        group: InputGroup,
        scales: jax.Array,
        weights: dict[str, jax.Array],
        encoded: dict[str, Encoded],
        changed: set[str],
    ) -> None:
        """Divides what makes the inputs by the scales that the weights were multiplied by."""
        dtype = self.model.config.dtype
        maker = prefix + (group.fold or "")
        if group.fold_is_norm:
            offset = norm_offset(self.model)
            norm = (weights[f"{maker}.weight"].astype(jnp.float32) + offset) / scales - offset
            weights[f"{maker}.weight"] = norm.astype(dtype)
            changed.add(f"{maker}.weight")
            return
        encoded[maker] = encoded[maker].with_rows_divided(np.asarray(scales))
        weights[f"{maker}.weight"] = self._float(encoded[maker])
        if f"{maker}.bias" in weights:
            weights[f"{maker}.bias"] = (weights[f"{maker}.bias"].astype(jnp.float32) / scales).astype(dtype)
            changed.add(f"{maker}.bias")

    def _report(self, name: str, scheme: Scheme, outcome: MemberResult) -> LayerReport:
        wanted = self.recipe.scheme(self._bits_of(name))
        notes, k = outcome.notes, self.model.linears[name][-1]
        if not wanted.fits(k):
            notes = (f"{k} in features are no whole groups of {wanted.group}: {scheme.describe()}", *notes)
        return LayerReport(
            name=name,
            module=self.shards.module(name),
            method=outcome.method,
            bits=scheme.bits,
            group_size=outcome.encoded.format.group or 0,
            symmetric=scheme.symmetric,
            shape=outcome.encoded.q.shape,
            nbytes=outcome.encoded.format.nbytes(outcome.encoded.q.shape),
            output_error=outcome.output_error,
            rtn_error=outcome.rtn_error,
            weight_error=outcome.weight_error,
            damping=outcome.damping,
            notes=notes,
        )

    def _report_rest(self, layer: int, encoded: Mapping[str, Encoded]) -> None:
        """Linear layers of a block, or outside of all, that were left as they are."""
        prefix = f"layers.{layer}."
        last = self.model.config.num_layers
        for name, shape in self.model.linears.items():
            is_here = name.startswith(prefix) if layer < last else not name.startswith("layers.")
            if not is_here or name in encoded:
                continue
            notes: tuple[str, ...] = ()
            if name.endswith(".router"):
                notes = ("routers stay in 16 bits",)
            elif len(shape) == 3:
                notes = ("experts are not quantized in this version",)
            spec = self.model.weights[f"{name}.weight"]
            self.reports.append(
                LayerReport(
                    name=name,
                    module="" if len(shape) == 3 else self.shards.module(name),
                    method="none",
                    bits=16 if spec.dtype != np.float32 else 32,
                    group_size=0,
                    symmetric=True,
                    shape=shape,
                    nbytes=spec.nbytes,
                    output_error=None,
                    rtn_error=None,
                    weight_error=0.0,
                    notes=notes,
                )
            )

    def _outside(self) -> None:
        """The head, if it is to be quantized, and everything that is in no block."""
        encoded: dict[str, Encoded] = {}
        bits = self.recipe.lm_head_bits
        if bits != 16 and "lm_head" in self.model.linears:
            w = read_weights(self.checkpoint, self.model, ("lm_head.weight",))["lm_head.weight"].astype(jnp.float32)
            check_weights("lm_head", w)
            scheme = dataclasses.replace(self.recipe.scheme(bits), activations=None).fitted(w.shape[1])
            result = quantize_group(
                {"lm_head": w}, {"lm_head": scheme}, "rtn", None, model_dtype=self.model.config.dtype, can_scale=False
            )
            outcome = result.members["lm_head"]
            encoded["lm_head"] = outcome.encoded
            self.formats["lm_head"] = outcome.encoded.format
            self.reports.append(self._report("lm_head", scheme, outcome))
        self._report_rest(self.model.config.num_layers, encoded)
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
