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
from ryzjax.evaluation.evaluate import check_tasks, evaluate, text_activation_cost, text_divergence
from ryzjax.evaluation.report import provenance, result_json
from ryzjax.evaluation.tasks import TaskOptions, open_data
from ryzjax.evaluation.text import EvaluationText
from ryzjax.loading.open_model import OpenModel, open_model
from ryzjax.quant.recipe import Recipe
from ryzjax.quantizing.calibration import Calibration
from ryzjax.quantizing.quantize import QuantizedModel
from ryzjax.serving.frontend.llm import LLM

__all__ = ["Check", "Measurement", "certify", "measure", "verify"]

Dtype = Literal["auto", "float32", "bfloat16"]
Activations = Literal["bf16", "int8"]
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
      activations: The activations of the quantized model's main figures: "bf16", or "int8" as `--activations int8` sets
        them. "auto" is not accepted: it would mean other figures on other machines.

    Raises:
      ConfigError: `activations` has another value.
    """

    text: str | None = None
    tasks: tuple[str, ...] = ()
    data: str = "hub"
    options: TaskOptions = dataclasses.field(default_factory=TaskOptions)
    context_tokens: int | None = None
    stride_tokens: int | None = None
    dtype: Dtype = "auto"
    activations: Activations = "bf16"

    def __post_init__(self) -> None:
        if self.activations not in ("bf16", "int8"):
            raise ConfigError(
                f"activations={self.activations!r} cannot be certified; expected 'bf16' or 'int8', which mean the same "
                "on all machines"
            )


@dataclass(frozen=True, kw_only=True)
class Check:
    """One certified figure or file, and its new value.

    Attributes:
      name: The dotted name of the figure, or the name of the file.
      certified: The value in the certificate.
      measured: The new value.
      is_same: Whether the two are equal. Numbers may differ by rounding.
      not_checked: Why this machine cannot measure the figure again; None if it was measured.
    """

    name: str
    certified: object
    measured: object
    is_same: bool
    not_checked: str | None = None


def measure(
    model: str,
    base: str,
    settings: Measurement,
    *,
    with_activation_cost: bool = True,
    show_progress: bool = False,
) -> dict[str, object]:
    """Measures a quantized model against its base model.

    The divergence is measured with bf16 and with int8 activations if this machine can run the latter.

    Args:
      model, base: The directories or Hub ids of the two models.
      settings: The settings of the measurement.
      with_activation_cost: Whether to measure the divergence with the other activations too.
      show_progress: Whether to show progress bars on stderr.

    Returns:
      The entry "measured" of a certificate: the settings, the divergence, the cost of int8 activations or why it was
      not measured, and the task results of both models.

    Raises:
      ConfigError: A task does not exist, the models cannot be compared, or int8 activations are not possible here.
      DataError: Text or data is missing or malformed.
    """
    if settings.tasks:
        check_tasks(settings.tasks)
    text = None if settings.text is None else EvaluationText.read(settings.text)
    data = open_data(settings.data) if settings.tasks else None
    measured: dict[str, object] = {"settings": dataclasses.asdict(settings), "divergence": None, "tasks": {}}
    if text is not None or data is not None:
        quantized = open_model(model, dtype=settings.dtype)
        refusal = quantized.plan.int8_refusal()
        if settings.activations == "int8" and refusal is not None:
            raise ConfigError(
                f"{model} cannot be measured with activations='int8' on this machine ({refusal}); measure on a CPU "
                "where ryzjax info says that the native kernels run, or certify the model with activations='bf16'"
            )
        if text is not None:
            measured |= _measure_text(
                open_model(base, dtype=settings.dtype),
                quantized,
                text,
                settings,
                both=with_activation_cost and refusal is None,
                show_progress=show_progress,
            )
            measured["activation_cost_refusal"] = refusal
    if data is not None:
        scores: dict[str, dict[str, object]] = {name: {} for name in settings.tasks}
        for role, path in (("quantized", model), ("base", base)):
            activations = settings.activations if role == "quantized" else "bf16"
            with LLM(path, dtype=settings.dtype, activations=activations) as llm:
                results = evaluate(llm, settings.tasks, data, settings.options, show_progress=show_progress)
            for name, result in results.items():
                scores[name][role] = result_json(result)
        measured["tasks"] = scores
    return measured


def _measure_text(
    reference: OpenModel,
    model: OpenModel,
    text: EvaluationText,
    settings: Measurement,
    *,
    both: bool,
    show_progress: bool,
) -> dict[str, object]:
    """Returns the entries "divergence" and "activation_cost" of a measurement; the latter is None without `both`."""
    if both:
        cost = text_activation_cost(
            reference,
            model,
            text,
            context_tokens=settings.context_tokens,
            stride_tokens=settings.stride_tokens,
            show_progress=show_progress,
        )
        distance = cost.int8 if settings.activations == "int8" else cost.bf16
    else:
        cost = None
        distance = text_divergence(
            reference,
            model.with_activations(settings.activations),
            text,
            context_tokens=settings.context_tokens,
            stride_tokens=settings.stride_tokens,
            show_progress=show_progress,
        )
    return {
        "divergence": {"text_sha256": text.sha256, **result_json(distance)},
        "activation_cost": None if cost is None else result_json(cost),
    }


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
    """Repeats the measurements of a certificate with the same activations, and compares the figures and the files.

    The figures of the main activations must be measurable here. Those of the other activations are reported as not
    checked where this machine cannot run int8 activations.

    Args:
      folder: The directory or Hub id of the quantized model.
      base: The plain model; None for the one that the certificate names.
      text: The text file; None for the one that the certificate names.
      data: The source of the benchmarks' data; None for the one that the certificate names.
      show_progress: Whether to show progress bars on stderr.

    Returns:
      A check for each file, then one for each figure.

    Raises:
      ConfigError: The model has no certificate, the models cannot be compared, or the main figures were measured with
        int8 activations, which are not possible here.
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
    cost = cast("Mapping[str, object] | None", certified.get("activation_cost"))
    measured = measure(folder, base_name, settings, with_activation_cost=cost is not None, show_progress=show_progress)
    checks += _compare("divergence", certified.get("divergence"), measured["divergence"])
    if cost is not None:
        # The difference of two close figures is not compared: rounding would be a large part of it.
        other = "bf16" if settings.activations == "int8" else "int8"
        found = cast("Mapping[str, object]", measured["activation_cost"] or {})
        refusal = cast("str | None", measured["activation_cost_refusal"])
        checks += _compare(f"{other}_activations", cost[other], found.get(other), refusal=refusal)
    return checks + _compare("tasks", certified.get("tasks"), measured["tasks"])


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


def _compare(name: str, certified: object, measured: object, *, refusal: str | None = None) -> list[Check]:
    """Compares all figures of two measurements. With `refusal`, there is no new measurement."""
    new = dict(_figures(name, measured))
    return [
        Check(
            name=figure,
            certified=value,
            measured=new.get(figure),
            is_same=refusal is None and _is_same(value, new.get(figure)),
            not_checked=refusal,
        )
        for figure, value in _figures(name, certified)
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
