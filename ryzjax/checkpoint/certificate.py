"""Reads the certificate beside a quantized checkpoint: how it was quantized, and how much quality that cost."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import cast

from ryzjax.errors import CheckpointError

__all__ = ["CERTIFICATE_FILE", "certificate_summary", "read_certificate"]

CERTIFICATE_FILE = "ryzjax_certificate.json"
_MAX_BYTES = 50_000_000


def read_certificate(directory: Path) -> Mapping[str, object] | None:
    """Reads the certificate in a model's directory; None if there is none.

    Raises:
      CheckpointError: The file cannot be read, or is not a certificate of RyzJAX.
    """
    path = directory / CERTIFICATE_FILE
    if not path.is_file():
        return None
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(
                f"{path}: {path.stat().st_size} bytes; expected at most {_MAX_BYTES}. Remove it, or quantize again"
            )
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON ({error}); remove it, or quantize again") from error
    if not isinstance(value, dict) or not isinstance(value.get("layers"), list):
        raise CheckpointError(f"{path}: not a certificate of RyzJAX; remove it, or quantize again")
    return value


def certificate_summary(certificate: Mapping[str, object]) -> dict[str, object]:
    """Returns the main figures: base model, method, bits, KL divergence, top-1 agreement, perplexity, task scores.

    If both kinds of activations were measured, the entry "int8_activations" or "bf16_activations" has the figures of
    the other kind, and "int8_added_kl" and "int8_share_of_kl" have the cost of int8 activations.

    Args:
      certificate: What `read_certificate` returned.
    """
    recipe = cast("Mapping[str, object]", certificate.get("recipe") or {})
    measured = cast("Mapping[str, object]", certificate.get("measured") or {})
    layers = cast("list[Mapping[str, object]]", certificate["layers"])
    summary: dict[str, object] = {
        "base_model": cast("Mapping[str, object]", certificate.get("base_model") or {}).get("name"),
        "method": recipe.get("method"),
        "bits": recipe.get("bits"),
        "bits_per_weight": certificate.get("bits_per_weight"),
        "fallbacks": sum(1 for layer in layers if layer.get("notes")),
    }
    divergence = measured.get("divergence")
    if isinstance(divergence, Mapping):
        for name in ("mean_kl", "top1_agreement", "perplexity", "reference_perplexity"):
            summary[name] = divergence.get(name)
        # Certificates were measured with bf16 activations before they named them.
        settings = cast("Mapping[str, object]", measured.get("settings") or {})
        summary["activations"] = main = settings.get("activations", "bf16")
        if isinstance(cost := measured.get("activation_cost"), Mapping):
            other = "bf16" if main == "int8" else "int8"
            figures = cast("Mapping[str, object]", cost[other])
            summary[f"{other}_activations"] = {
                name: figures.get(name) for name in ("mean_kl", "top1_agreement", "perplexity")
            }
            summary["int8_added_kl"] = cost.get("added_kl")
            summary["int8_share_of_kl"] = cost.get("share_of_kl")
    tasks = measured.get("tasks")
    if isinstance(tasks, Mapping) and tasks:
        summary["tasks"] = {
            name: {which: _scores(result) for which, result in both.items()} for name, both in tasks.items()
        }
    return summary


def _scores(result: object) -> dict[str, object]:
    metrics = result.get("metrics", {}) if isinstance(result, Mapping) else {}
    return {name: metric.get("value") for name, metric in metrics.items() if isinstance(metric, Mapping)}
