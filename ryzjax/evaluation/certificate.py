"""Certificates: measure a quantized model against its base model, record the figures, and verify them later.

`certify` measures a new model and writes the certificate into its folder. `verify` repeats the measurements of a
certificate and compares the figures.
"""

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
"""The relative difference that `verify` accepts. Figures from another machine or version differ by rounding."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The settings of a measurement. The certificate contains them, so that the measurement can be repeated.

    Attributes:
      text: The text file for KL divergence, agreement and perplexity; None to skip them.
      tasks: The names of the benchmarks, which both models run.
      data: The source of the benchmarks' data, for `open_data`.
      options: The options of the benchmarks.
      context_tokens, stride_tokens: The length and the distance of the text's windows; None for the defaults of
        `text_divergence`.
      dtype: The dtype that both models compute in.
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
    """One certified figure or file, and its new value.

    Attributes:
      name: The dotted name of the figure, or the name of the file.
      certified: The value in the certificate.
      measured: The new value.
      is_same: Whether the two are equal. Numbers may differ by rounding.
    """

    name: str
    certified: object
    measured: object
    is_same: bool


def measure(model: str, base: str, settings: Measurement, *, show_progress: bool = False) -> dict[str, object]:
    """Measures a quantized model against its base model.

    Args:
      model, base: The directories or Hub ids of the two models.
      settings: The settings of the measurement.
      show_progress: Whether to show progress bars on stderr.

    Returns:
      The entry "measured" of a certificate: the settings, the divergence, and the task results of both models.

    Raises:
      ConfigError: A task does not exist, or the models cannot be compared.
      DataError: Text or data is missing or malformed.
    """
    if settings.tasks:
        check_tasks(settings.tasks)
    text = None if settings.text is None else EvaluationText.read(settings.text)
    data = open_data(settings.data) if settings.tasks else None
    measured: dict[str, object] = {"settings": dataclasses.asdict(settings), "divergence": None, "tasks": {}}
    if text is not None:
        distance = text_divergence(
            open_model(base, dtype=settings.dtype),
            open_model(model, dtype=settings.dtype),
            text,
            context_tokens=settings.context_tokens,
            stride_tokens=settings.stride_tokens,
            show_progress=show_progress,
        )
        measured["divergence"] = {"text_sha256": text.sha256, **result_json(distance)}
    if data is not None:
        scores: dict[str, dict[str, object]] = {name: {} for name in settings.tasks}
        for role, path in (("quantized", model), ("base", base)):
            with LLM(path, dtype=settings.dtype) as llm:
                results = evaluate(llm, settings.tasks, data, settings.options, show_progress=show_progress)
            for name, result in results.items():
                scores[name][role] = result_json(result)
        measured["tasks"] = scores
    return measured


def certify(
    quantized: QuantizedModel,
    source: CheckpointSource,
    recipe: Recipe,
    calibration: Calibration | None,
    settings: Measurement,
    *,
    seed: int,
    kv_scales: Mapping[str, object] | None = None,
    show_progress: bool = False,
) -> Path:
    """Measures a model that has just been quantized, writes its certificate, and finishes the model.

    Args:
      quantized: The quantized model, which is not finished yet.
      source: The plain model.
      recipe, calibration, seed: How the model was quantized.
      settings: The settings of the measurement.
      kv_scales: How the scales of an fp8 KV cache were calibrated; None without such scales.
      show_progress: Whether to show progress bars on stderr.

    Returns:
      The final folder of the model.
    """
    measured = measure(str(quantized.folder), source.name, settings, show_progress=show_progress)
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
    """Repeats the measurements of a certificate, and compares the figures and the files.

    Args:
      folder: The directory or Hub id of the quantized model.
      base: The plain model; None for the one that the certificate names.
      text: The text file; None for the one that the certificate names.
      data: The source of the benchmarks' data; None for the one that the certificate names.
      show_progress: Whether to show progress bars on stderr.

    Returns:
      A check for each file, then one for each figure.

    Raises:
      ConfigError: The model has no certificate, or the models cannot be compared.
      CheckpointError: The certificate is damaged, or weights cannot be read.
      DataError: Text or data is missing or malformed.
    """
    source = resolve_source(folder)
    certificate = read_certificate(source.directory)
    if certificate is None:
        raise ConfigError(f"{folder}: no {CERTIFICATE_FILE}; only models written by ryzjax quantize have one")
    checks = _check_files(certificate, source.directory)
    certified = cast("Mapping[str, object]", certificate["measured"])
    settings = _settings(cast("Mapping[str, object]", certified["settings"]))
    if settings.text and text:
        settings = dataclasses.replace(settings, text=text)
    if data:
        settings = dataclasses.replace(settings, data=data)
    base_name = base or cast("str", cast("Mapping[str, object]", certificate["base_model"])["name"])
    measured = measure(folder, base_name, settings, show_progress=show_progress)
    return [*checks, *_compare("divergence", certified, measured), *_compare("tasks", certified, measured)]


def _settings(fields: Mapping[str, object]) -> Measurement:
    """Returns the settings of a measurement from their JSON form."""
    options = TaskOptions(**cast("dict", fields["options"]))
    tasks = tuple(cast("Sequence[str]", fields["tasks"]))
    return Measurement(**cast("dict", {**fields, "options": options, "tasks": tasks}))


def _check_files(certificate: Mapping[str, object], directory: Path) -> list[Check]:
    checks = []
    for name, wanted in cast("Mapping[str, str]", certificate["files"]).items():
        path = directory / name
        found = _hashes([path])[name] if path.is_file() else "missing"
        checks.append(Check(name=name, certified=wanted, measured=found, is_same=wanted == found))
    return checks


def _compare(key: str, certified: Mapping[str, object], measured: Mapping[str, object]) -> list[Check]:
    """Compares all figures under `key` of two measurements."""
    new = dict(_figures(key, measured.get(key)))
    return [
        Check(name=name, certified=value, measured=new.get(name), is_same=_is_same(value, new.get(name)))
        for name, value in _figures(key, certified.get(key))
    ]


def _figures(name: str, value: object) -> list[tuple[str, object]]:
    """Flattens nested figures to (dotted name, value). The options of tasks are not figures."""
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() if key != "options" for leaf in _figures(f"{name}.{key}", inner)]
    return [(name, value)]


def _is_same(one: object, two: object) -> bool:
    numbers = isinstance(one, (int, float)) and isinstance(two, (int, float))
    if numbers and not isinstance(one, bool):
        return math.isclose(cast("float", one), cast("float", two), rel_tol=_TOLERANCE, abs_tol=1e-7)
    return one == two


def _hashes(files: Sequence[Path]) -> dict[str, str]:
    """Returns file name -> SHA-256 of the file, hexadecimal."""
    found = {}
    for path in files:
        with path.open("rb") as file:
            found[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
