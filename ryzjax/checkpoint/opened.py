"""OpenCheckpoint: a checkpoint's files, opened, and where in them each of our weights is."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from ryzjax.checkpoint.families import HF_FAMILIES
from ryzjax.checkpoint.gguf.file import GgufFile
from ryzjax.checkpoint.gguf.names import gguf_weight, is_ignorable_gguf, row_transforms
from ryzjax.checkpoint.kv_scales import KV_SCALE_ENDINGS
from ryzjax.checkpoint.quantized.gguf import GgufMatrix
from ryzjax.checkpoint.quantized.matrix import DequantizedWeight, QuantizedLeaf, RowsOf, StoredMatrix
from ryzjax.checkpoint.quantized.method import quant_method
from ryzjax.checkpoint.safetensors import SafetensorsFile
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.checkpoint.stored import Stored, StoredWeight, Strided
from ryzjax.checkpoint.tensor_file import TensorFile
from ryzjax.errors import CheckpointError
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import AbstractModel, family_of
from ryzjax.qarray import QFormat

__all__ = ["OpenCheckpoint", "StoredLinear"]

_log = logging.getLogger(__name__)

_PACKED = (".qweight", ".weight_packed")
"""Endings of what stands where a plain checkpoint has ".weight"."""
_GGUF_KEPT = ("Q8_0", "Q4_0")


@dataclass(frozen=True, kw_only=True)
class StoredLinear:
    """A quantized linear layer in a checkpoint.

    Attributes:
      matrices: one, or one an expert.
      is_stack: whether they are experts.
      float_reason: why it cannot stay quantized; None where it can.
    """

    matrices: tuple[StoredMatrix, ...]
    is_stack: bool
    float_reason: str | None

    @property
    def format(self) -> QFormat:
        """Of all matrices."""
        return self.matrices[0].format


class OpenCheckpoint:
    """The open files of a checkpoint; a context manager.

    Args:
      source: its files, safetensors or GGUF.
      config: of the model; says how its family stores weights.

    Raises:
      CheckpointError: a file is damaged, or a tensor is in two of them.
      UnsupportedModelError: a quantization that cannot be read.
    """

    def __init__(self, source: CheckpointSource, config: ModelConfig):
        if not source.weight_files:
            raise CheckpointError(f"{source.path}: no weight files were resolved; resolve it with load_format auto")
        self.source = source
        self._method = quant_method(source) if source.weight_format == "safetensors" else None
        with ExitStack() as stack:
            files = [stack.enter_context(closing(_open(source, path, config))) for path in source.weight_files]
            self.home = _locate(source, files)
            self._close = stack.pop_all()
        self._names = _gguf_names(config) if source.weight_format == "gguf" else _hf_names(config, self.home)
        self._sorted = sorted(self.home)
        as_plain = (
            f"{name[: -len(ending)]}.weight" for name in self.home for ending in _PACKED if name.endswith(ending)
        )
        self._available = frozenset(self.home) | frozenset(as_plain)

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._close.close()

    def is_ignorable(self, tensor: str) -> bool:
        """Whether a tensor that no weight is made of may be left unread."""
        ignored = self._method.ignored if self._method is not None else ()
        # Scales of the KV cache are read apart from the weights, and only where the cache is to be fp8.
        return self._names.is_ignorable(tensor) or tensor.endswith((*ignored, *KV_SCALE_ENDINGS))

    def stored(self, name: str, model: AbstractModel) -> StoredWeight:
        """Where one of the model's weights is, or one leaf of a quantized one; quantized ones are read as floats
        where the model wants floats."""
        module, _, leaf = name.rpartition(".weight.")
        if module in model.quantization:
            linear = self.linear(module, model.linears[module])
            assert linear is not None, f"{module} is not quantized in the checkpoint"
            return QuantizedLeaf(linear.matrices, leaf, linear.is_stack)
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module in model.linears:
            linear = self.linear(module, model.linears[module])
            if linear is not None:
                return DequantizedWeight(linear.matrices, linear.is_stack)
        return self._names.weight(name, self._available)

    def quantization(self, model: AbstractModel) -> dict[str, QFormat]:
        """Name of each linear layer that is quantized in the checkpoint, and can be in memory -> its format."""
        formats: dict[str, QFormat] = {}
        reasons: Counter[str] = Counter()
        for name, shape in model.linears.items():
            linear = self.linear(name, shape)
            if linear is None:
                kind = self._block_kind(name)
                if kind is not None:
                    reasons[f"{kind} blocks have no equivalent in memory"] += 1
                continue
            if linear.float_reason is None:
                formats[name] = linear.format
            else:
                reasons[linear.float_reason] += 1
        for kind, count in Counter(map(_describe, formats.values())).items():
            _log.info("%d linear layers stay quantized: %s", count, kind)
        for reason, count in reasons.items():
            _log.info("%d linear layers are dequantized to %s: %s", count, model.config.dtype, reason)
        return formats

    def linear(self, name: str, shape: tuple[int, ...]) -> StoredLinear | None:
        """The quantized matrix, or matrices, of a linear layer; None where it is plain.

        Args:
          shape: [N, K], or [experts, N, K].

        Raises:
          CheckpointError: tensors that do not fit each other or the shape.
        """
        stored = self._names.weight(f"{name}.weight", self._available)
        if isinstance(stored, Stored):
            found = [self._matrix(tensor, (shape[-2], shape[-1])) for tensor in stored.names]
            is_stack = stored.is_stack
        elif isinstance(stored, Strided) and not stored.is_transposed and stored.total is not None:
            whole = self._matrix(stored.name, (stored.total, shape[-1]))
            found = [None if whole is None else RowsOf(whole, range(*stored.rows.indices(stored.total)))]
            is_stack = False
        else:
            return None
        matrices = tuple(matrix for matrix in found if matrix is not None)
        if not matrices:
            return None
        if len(matrices) < len(found):
            plain = next(tensor for tensor, matrix in zip(stored.names, found, strict=True) if matrix is None)
            raise CheckpointError(
                f"{self.source.path}: some experts of {name} are quantized, but {plain!r} is not; expected all or none"
            )
        reason = next((matrix.float_format for matrix in matrices if matrix.float_format), None)
        if reason is None and len({matrix.format for matrix in matrices}) > 1:
            reason = "its experts have several formats"
        if reason is None and len(shape) == 3:
            reason = "experts are multiplied unquantized in this version"
        return StoredLinear(matrices=matrices, is_stack=is_stack, float_reason=reason)

    def _block_kind(self, name: str) -> str | None:
        """The kind of GGUF blocks that a linear layer is stored in, where it is."""
        tensor = self._names.weight(f"{name}.weight", self._available).names[0]
        file = self.home.get(tensor)
        return file.block_kinds.get(tensor) if isinstance(file, GgufFile) else None

    def _matrix(self, tensor: str, shape: tuple[int, int]) -> StoredMatrix | None:
        """The quantized matrix that stands where a plain checkpoint has `tensor`."""
        if self.source.weight_format == "gguf":
            file = self.home.get(tensor)
            if not isinstance(file, GgufFile) or file.block_kinds.get(tensor) not in _GGUF_KEPT:
                return None
            return GgufMatrix(file, tensor, shape) if file.entries[tensor].shape == shape else None
        if self._method is None:
            return None
        base = tensor.removesuffix(".weight")
        first = bisect_left(self._sorted, f"{base}.")
        names = []
        for name in self._sorted[first:]:
            if not name.startswith(f"{base}."):
                break
            if name != f"{base}.bias":
                names.append(name)
        return self._method.matrix(self.home, base, tuple(names), shape)


@dataclass(frozen=True, kw_only=True)
class _Names:
    """How a format names weights: where each of ours is, and which tensors are of no use."""

    weight: Callable[[str, frozenset[str]], StoredWeight]
    is_ignorable: Callable[[str], bool]


def _hf_names(config: ModelConfig, home: Mapping[str, TensorFile]) -> _Names:
    family = HF_FAMILIES[family_of(config)]
    # The usual prefix where none fits, so that errors name it.
    fits = (prefix for prefix in family.prefixes if f"{prefix}embed_tokens.weight" in home)
    prefix = next(fits, family.prefixes[0])

    def is_ignorable(tensor: str) -> bool:
        # Old exports store RoPE's inverse frequencies, which follow from the config, and some store the head even
        # where it is tied to the embedding. Multimodal models have parts that see and hear.
        is_head = config.tie_embeddings and tensor.startswith("lm_head.")
        return is_head or tensor.endswith(".rotary_emb.inv_freq") or tensor.startswith(family.ignored)

    return _Names(
        weight=lambda name, available: family.weight(name, config, prefix, available), is_ignorable=is_ignorable
    )


def _gguf_names(config: ModelConfig) -> _Names:
    family = family_of(config)
    return _Names(
        weight=lambda name, available: gguf_weight(name, family, config, available), is_ignorable=is_ignorable_gguf
    )


def _open(source: CheckpointSource, path: Path, config: ModelConfig) -> TensorFile:
    if source.weight_format == "safetensors":
        return SafetensorsFile(path)
    file = GgufFile(path)
    file.transforms = row_transforms(family_of(config), file.entries, config)
    return file


def _locate(source: CheckpointSource, files: Iterable[TensorFile]) -> dict[str, TensorFile]:
    """Tensor name -> the file that holds it, checked against the index where there is one."""
    home: dict[str, TensorFile] = {}
    for file in files:
        for tensor in file.entries:
            if tensor in home:
                raise CheckpointError(
                    f"{file.path}: tensor {tensor!r} is in {home[tensor].path.name} too; remove one of the two files"
                )
            home[tensor] = file
    for tensor, path in (source.weight_map or {}).items():
        if tensor not in home or home[tensor].path != path:
            where = f"it is in {home[tensor].path.name}" if tensor in home else "it is in no file"
            raise CheckpointError(
                f"{path}: tensor {tensor!r} should be here by the index, but {where}; download the files again"
            )
    return home


def _describe(format: QFormat) -> str:
    groups = "one scale a row" if format.group is None else f"groups of {format.group}"
    if format.rows is None:
        groups = "one scale"
    elif format.rows > 1:
        groups = f"blocks of {format.rows} x {format.group}"
    zeros = ", with zeros" if format.has_zeros else ""
    order = ", permuted" if format.has_order else ""
    return f"{format.kind}, {groups}{zeros}{order}" + (", int8 activations" if format.activations else "")
