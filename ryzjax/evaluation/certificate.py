"""Certificates: a quantized model measured against the one it was made of, and measured again to verify it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

from ryzjax.checkpoint.certificate import CERTIFICATE_FILE, read_certificate
from ryzjax.checkpoint.source import CheckpointSource, resolve_source
from ryzjax.errors import ConfigError
from ryzjax.evaluation.evaluate import check_tasks, evaluate, text_divergence
from ryzjax.evaluation.report import provenance, result_json
from ryzjax.evaluation.tasks import TaskOptions, open_data
from ryzjax.evaluation.text import EvaluationText
from ryzjax.loading.open_model import open_model
from ryzjax.quant.recipe import Recipe
from ryzjax.quantizing.calibration import Calibration
from ryzjax.quantizing.quantize import QuantizedModel
from ryzjax.serving.frontend.llm import LLM

__all__ = ["Check", "Measurement", "certify", "measure", "verify"]

Dtype = Literal["auto", "float32", "bfloat16"]
_TOLERANCE = 1e-3
"""Relative: figures on another machine, or after an update, differ by rounding."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What is measured of a quantized model and its base; all of it is in the certificate, so that it can be repeated.

    Attributes:
      text: file for KL, agreement and perplexity; None to leave them out.
      tasks: benchmarks, for both models.
      data: where the benchmarks' data is.
      options: of the benchmarks.
      context_tokens, stride_tokens: of the text's windows; None as `text_divergence` has them.
      dtype: both models are computed in it.
    """

    text: str | None = None
    tasks: tuple[str, ...] = ()
    data: str = "hub"
    options: TaskOptions = dataclasses.field(default_factory=TaskOptions)
    context_tokens: int | None = None
    stride_tokens: int | None = None
    dtype: Dtype = "auto"


@dataclass(frozen=True, kw_only=True)
class Check:
    """One figure of a certificate, measured again.

    Attributes:
      name: of the figure, dotted.
      certified, measured: then and now.
      is_same: within rounding.
    """

    name: str
    certified: object
    measured: object
    is_same: bool


def measure(model: str, base: str, what: Measurement, *, show_progress: bool = False) -> dict[str, object]:
    """Measures a quantized model against its base.

    Args:
      model, base: directories or Hub ids.

    Raises:
      ConfigError: no such task, or models that cannot be compared.
      DataError: text or data that is missing or malformed.
    """
    if what.tasks:
        check_tasks(what.tasks)
    text = None if what.text is None else EvaluationText.read(what.text)
    data = open_data(what.data) if what.tasks else None
    found: dict[str, object] = {"settings": dataclasses.asdict(what), "divergence": None, "tasks": {}}
    if text is not None:
        distance = text_divergence(
            open_model(base, dtype=what.dtype),
            open_model(model, dtype=what.dtype),
            text,
            context_tokens=what.context_tokens,
            stride_tokens=what.stride_tokens,
            show_progress=show_progress,
        )
        found["divergence"] = {"text_sha256": text.sha256, **result_json(distance)}
    if data is not None:
        scores: dict[str, dict[str, object]] = {name: {} for name in what.tasks}
        for which, path in (("quantized", model), ("base", base)):
            with LLM(path, dtype=what.dtype) as llm:
                for name, result in evaluate(llm, what.tasks, data, what.options, show_progress=show_progress).items():
                    scores[name][which] = result_json(result)
        found["tasks"] = scores
    return found


def certify(
    quantized: QuantizedModel,
    source: CheckpointSource,
    recipe: Recipe,
    calibration: Calibration | None,
    what: Measurement,
    *,
    seed: int,
    kv_scales: Mapping[str, object] | None = None,
    show_progress: bool = False,
) -> Path:
    """Measures a model that was just written, puts the certificate beside it, and gives the folder its name.

    Args:
      quantized: not finished yet.
      source: of the plain model.
      recipe, calibration, seed: how it was made.
      what: to measure.
      kv_scales: where scales of an fp8 KV cache come from, where there are some.
    """
    measured = measure(str(quantized.folder), source.name, what, show_progress=show_progress)
    quantized_layers = [report for report in quantized.reports if report.method != "none"]
    weights = sum(math.prod(report.shape) for report in quantized_layers)
    certificate = {
        "format": 1,
        "base_model": {"name": source.name, "files": _hashes(source.weight_files)},
        "recipe": dataclasses.asdict(recipe),
        "calibration": None if calibration is None else calibration.describe(),
        "seed": seed,
        "kv_scales": kv_scales,
        "bits_per_weight": 8 * sum(report.nbytes for report in quantized_layers) / weights if weights else None,
        "layers": [dataclasses.asdict(report) for report in quantized.reports],
        "measured": measured,
        "files": _hashes(sorted(quantized.folder.glob("*.safetensors"))),
        "wall_s": quantized.wall_s,
        **provenance(),
    }
    return quantized.finish({CERTIFICATE_FILE: json.dumps(certificate, indent=1) + "\n"})


def verify(
    folder: str,
    *,
    base: str | None = None,
    text: str | None = None,
    data: str | None = None,
    show_progress: bool = False,
) -> list[Check]:
    """Measures again what a certificate holds.

    Args:
      folder: of the quantized model.
      base: the plain model, where it is not where it was.
      text, data: likewise.

    Raises:
      ConfigError: there is no certificate, or it measures nothing.
    """
    source = resolve_source(folder)
    certificate = read_certificate(source.directory)
    if certificate is None:
        raise ConfigError(f"{folder}: no {CERTIFICATE_FILE}; models that ryzjax quantize wrote have one")
    checks = _check_files(certificate, source.directory)
    before = cast("Mapping[str, object]", certificate["measured"])
    settings = dict(cast("Mapping[str, object]", before["settings"]))
    options = TaskOptions(**cast("dict", settings.pop("options")))
    settings["tasks"] = tuple(cast("Sequence[str]", settings["tasks"]))
    what = dataclasses.replace(Measurement(**cast("dict", settings)), options=options)
    what = dataclasses.replace(what, text=text or what.text if what.text else None, data=data or what.data)
    name = base or cast("str", cast("Mapping[str, object]", certificate["base_model"])["name"])
    now = measure(folder, name, what, show_progress=show_progress)
    return [*checks, *_compare("divergence", before, now), *_compare("tasks", before, now)]


def _check_files(certificate: Mapping[str, object], directory: Path) -> list[Check]:
    checks = []
    for name, wanted in cast("Mapping[str, str]", certificate["files"]).items():
        path = directory / name
        found = _hashes([path])[name] if path.is_file() else "missing"
        checks.append(Check(name=name, certified=wanted, measured=found, is_same=wanted == found))
    return checks


def _compare(key: str, before: Mapping[str, object], now: Mapping[str, object]) -> list[Check]:
    old, new = dict(_leaves(key, before.get(key))), dict(_leaves(key, now.get(key)))
    return [
        Check(name=name, certified=value, measured=new.get(name), is_same=_is_same(value, new.get(name)))
        for name, value in old.items()
    ]


def _leaves(name: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() if key != "options" for leaf in _leaves(f"{name}.{key}", inner)]
    return [(name, value)]


def _is_same(one: object, two: object) -> bool:
    numbers = isinstance(one, (int, float)) and isinstance(two, (int, float))
    if numbers and not isinstance(one, bool):
        return math.isclose(cast("float", one), cast("float", two), rel_tol=_TOLERANCE, abs_tol=1e-7)
    return one == two


def _hashes(files: Sequence[Path]) -> dict[str, str]:
    """File name -> sha256."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
