"""Maps PEFT's modules to our linear layers, and splits and joins the adapters of fused projections."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from ryzjax.checkpoint.families import HF_FAMILIES
from ryzjax.checkpoint.stored_weight import TensorRows, WholeTensors
from ryzjax.errors import CheckpointError
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.registry import family_of

__all__ = ["ModuleWeights", "PeftModule", "PeftModules", "join", "peft_modules", "split"]

Array = np.ndarray


@dataclass(frozen=True, kw_only=True)
class ModuleWeights:
    """The matrices of one module in float32, and their scale. The update of the weight is scale * B A.

    Attributes:
      a: A, [r, K].
      b: B, [N, r].
      magnitude: DoRA's magnitudes, [N]; None for other adapters.
      scale: The factor of B A.
    """

    a: Array
    b: Array
    magnitude: Array | None
    scale: float


@dataclass(frozen=True, kw_only=True)
class PeftModule:
    """A linear layer of the Hugging Face model.

    Attributes:
      path: The module path, such as "model.layers.0.self_attn.qkv_proj".
      shape: [N, K].
      parts: Our layer name -> its rows in the module. A module that is not fused has one layer with all rows.
    """

    path: str
    shape: tuple[int, int]
    parts: Mapping[str, range]


@dataclass(frozen=True, kw_only=True)
class PeftModules:
    """All linear layers of a Hugging Face model.

    Attributes:
      modules: Module path -> the module, for modules that can be adapted.
      others: Module paths of experts, which cannot be adapted.
    """

    modules: Mapping[str, PeftModule]
    others: frozenset[str]

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of all modules."""
        return (*self.modules, *sorted(self.others))


def peft_modules(model: AbstractModel, prefix: str) -> PeftModules:
    """Returns the linear layers of a model under Hugging Face's names, fused as there.

    Args:
      model: The abstract model.
      prefix: Prefix of the text model's names, one of `HFFamily.prefixes`.
    """
    family = HF_FAMILIES[family_of(model.config)]
    parts: dict[str, dict[str, range]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    others: set[str] = set()
    for layer, shape in model.linears.items():
        stored = family.weight(f"{layer}.weight", model.config, prefix, frozenset())
        paths = [name.removesuffix(".weight") for name in stored.names]
        if isinstance(stored, WholeTensors) and not stored.is_stack:
            rows = range(shape[-2])
        elif (
            isinstance(stored, TensorRows) and not stored.is_transposed and stored.total is not None and len(shape) == 2
        ):
            rows = range(*stored.rows.indices(stored.total))
            assert rows.step == 1, f"rows of {layer} are interleaved"
        else:
            others.update(paths)
            continue
        parts.setdefault(paths[0], {})[layer] = rows
        sizes[paths[0]] = max(rows.stop, sizes.get(paths[0], (0, 0))[0]), shape[-1]
    modules = {path: PeftModule(path=path, shape=sizes[path], parts=parts[path]) for path in parts}
    return PeftModules(modules=modules, others=frozenset(others))


def split(module: PeftModule, weights: ModuleWeights) -> dict[str, ModuleWeights]:
    """Splits a module's matrices into those of our layers, which share A. Each gets its rows of B and magnitude."""
    return {
        layer: ModuleWeights(
            a=weights.a,
            b=np.ascontiguousarray(weights.b[rows.start : rows.stop]),
            magnitude=None if weights.magnitude is None else weights.magnitude[rows.start : rows.stop].copy(),
            scale=weights.scale,
        )
        for layer, rows in module.parts.items()
    }


def join(module: PeftModule, parts: Mapping[str, ModuleWeights]) -> ModuleWeights:
    """Joins the matrices of our layers into those of their module, without loss.

    If all layers are adapted and share A, the module has the same A. Otherwise the layers' A are stacked and B becomes
    block-diagonal, so that the rank is the sum of their ranks. A layer that is not adapted has rows of zeros in B.

    Args:
      module: The module.
      parts: Our layer name -> its matrices, for the layers that are adapted.

    Raises:
      CheckpointError: DoRA adapts only some of the layers. PEFT would need the magnitudes of the others too, and those
        are norms of the base's weights, which are not known here.
    """
    if set(parts) == set(module.parts) and _is_shared(parts.values()):
        first, *_ = parts.values()
        b = np.concatenate([parts[layer].b for layer in _by_row(module)])
        magnitudes = [m for layer in _by_row(module) if (m := parts[layer].magnitude) is not None]
        magnitude = np.concatenate(magnitudes) if magnitudes else None
        return ModuleWeights(a=first.a, b=b, magnitude=magnitude, scale=first.scale)
    magnitude = None
    if any(part.magnitude is not None for part in parts.values()):
        if set(parts) != set(module.parts):
            missing = ", ".join(sorted(set(module.parts) - set(parts)))
            raise CheckpointError(
                f"DoRA of {', '.join(parts)} cannot be saved: PEFT adapts all of {module.path}, and {missing} is not "
                "adapted; adapt all of its parts, or train without DoRA"
            )
        magnitude = np.zeros(module.shape[0], np.float32)
    rank = sum(part.a.shape[0] for part in parts.values())
    scale = next(iter(parts.values())).scale
    b = np.zeros((module.shape[0], rank), np.float32)
    at = 0
    for layer, part in parts.items():
        rows, columns = module.parts[layer], slice(at, at + part.a.shape[0])
        b[rows.start : rows.stop, columns] = part.b * np.float32(part.scale / scale)
        if magnitude is not None and part.magnitude is not None:
            magnitude[rows.start : rows.stop] = part.magnitude
        at = columns.stop
    return ModuleWeights(a=np.concatenate([part.a for part in parts.values()]), b=b, magnitude=magnitude, scale=scale)


def _by_row(module: PeftModule) -> list[str]:
    return sorted(module.parts, key=lambda layer: module.parts[layer].start)


def _is_shared(parts: Iterable[ModuleWeights]) -> bool:
    first, *rest = parts
    return all(part.scale == first.scale and np.array_equal(part.a, first.a) for part in rest)
