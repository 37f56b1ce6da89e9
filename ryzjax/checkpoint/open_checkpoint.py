"""OpenCheckpoint: the open files of a checkpoint, and where each of our weights is stored in them."""

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
from ryzjax.checkpoint.quantized.gguf_blocks import BLOCK_KINDS
from ryzjax.checkpoint.quantized.method import quant_method
from ryzjax.checkpoint.quantized.quantized_weight import DequantizedWeight, QuantizedLeaf
from ryzjax.checkpoint.quantized.stored_matrix import RowsOf, StoredMatrix
from ryzjax.checkpoint.safetensors import SafetensorsFile
from ryzjax.checkpoint.source import CheckpointSource
from ryzjax.checkpoint.stored_weight import StoredWeight, TensorRows, WholeTensors
from ryzjax.checkpoint.tensor_file import TensorFile
from ryzjax.errors import CheckpointError
from ryzjax.models.abstract import AbstractModel
from ryzjax.models.config import ModelConfig
from ryzjax.models.registry import family_of
from ryzjax.qarray import QFormat

__all__ = ["OpenCheckpoint", "StoredLinear"]

_log = logging.getLogger(__name__)

_PACKED = (".qweight", ".weight_packed")
"""Name endings of tensors that replace ".weight" in a quantized checkpoint."""


@dataclass(frozen=True, kw_only=True)
class StoredLinear:
    """A linear layer that is quantized in a checkpoint.

    Attributes:
      matrices: One matrix, or one per expert.
      is_stack: Whether the matrices are experts.
      float_reason: The reason why the layer must be dequantized; None if it can stay quantized.
    """

    matrices: tuple[StoredMatrix, ...]
    is_stack: bool
    float_reason: str | None

    @property
    def format(self) -> QFormat:
        """The format in memory, which all matrices share if the layer can stay quantized."""
        return self.matrices[0].format


class OpenCheckpoint:
    """The open files of a checkpoint. It is a context manager that closes them.

    Args:
      source: The checkpoint, safetensors or GGUF.
      config: The model's config. It determines how the family names and fuses its weights.

    Attributes:
      source: The checkpoint.
      file_of: Tensor name -> the open file that holds it.

    Raises:
      CheckpointError: A file is damaged, two files hold the same tensor, or the index is wrong.
      UnsupportedModelError: The checkpoint's quantization is not supported.
    """

    def __init__(self, source: CheckpointSource, config: ModelConfig):
        if not source.weight_files:
            raise CheckpointError(
                f"{source.path}: no weight files were resolved; call resolve_source with load_format='auto'"
            )
        self.source = source
        self._method = quant_method(source) if source.weight_format == "safetensors" else None
        with ExitStack() as stack:
            files = [stack.enter_context(closing(_open(source, path, config))) for path in source.weight_files]
            self.file_of = _locate(source, files)
            self._close = stack.pop_all()
        self._names = _gguf_names(config) if source.weight_format == "gguf" else _hf_names(config, self.file_of)
        self._sorted = sorted(self.file_of)
        as_plain = (
            f"{name[: -len(ending)]}.weight" for name in self.file_of for ending in _PACKED if name.endswith(ending)
        )
        self._available = frozenset(self.file_of) | frozenset(as_plain)

    def __enter__(self) -> OpenCheckpoint:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        self._close.close()

    def is_ignorable(self, tensor: str) -> bool:
        """Whether a tensor that belongs to no weight may be ignored."""
        ignored = self._method.ignored if self._method is not None else ()
        # `kv_scales` reads the scales of the KV cache, and only for an fp8 cache.
        return self._names.is_ignorable(tensor) or tensor.endswith((*ignored, *KV_SCALE_ENDINGS))

    def stored(self, name: str, model: AbstractModel) -> StoredWeight:
        """Returns where a weight of the model is stored.

        A weight that is quantized in the files and plain in the model is dequantized when it is read.

        Args:
          name: A name in `model.weights`: a weight, or a leaf of a quantized one ("<layer>.weight.scales").
          model: The abstract model.
        """
        module, _, leaf = name.rpartition(".weight.")
        if module in model.quantization:
            linear = self.linear(module, self._matrices(model)[module])
            assert linear is not None, f"{module} is not quantized in the checkpoint"
            return QuantizedLeaf(linear.matrices, leaf, linear.is_stack)
        module = name.removesuffix(".weight")
        if name.endswith(".weight") and module in model.linears:
            linear = self.linear(module, model.linears[module])
            if linear is not None:
                return DequantizedWeight(linear.matrices, linear.is_stack)
        return self._names.weight(name, self._available)

    def quantization(self, model: AbstractModel) -> dict[str, QFormat]:
        """Returns layer name -> format, for the layers that can stay quantized in memory.

        They are linear layers, and the embedding table ("embed") of a GGUF file. The log says how many layers stay
        quantized, and why others are dequantized.
        """
        formats: dict[str, QFormat] = {}
        reasons: Counter[str] = Counter()
        for name, shape in self._matrices(model).items():
            linear = self.linear(name, shape)
            if linear is None:
                kind = self._block_kind(name)
                if kind in BLOCK_KINDS:  # A GGUF file holds all experts of a layer as one tensor of three dimensions.
                    reasons["quantized experts are not supported in this version"] += 1
                elif kind is not None:
                    reasons[f"{kind} blocks have no equivalent in memory"] += 1
                continue
            if linear.float_reason is None:
                formats[name] = linear.format
            else:
                reasons[linear.float_reason] += 1
        for kind, count in Counter(map(_describe, formats.values())).items():
            _log.info("%d layers stay quantized: %s", count, kind)
        for reason, count in reasons.items():
            _log.info("%d layers are dequantized to %s: %s", count, model.config.dtype, reason)
        return formats

    def _matrices(self, model: AbstractModel) -> dict[str, tuple[int, ...]]:
        """The shapes of the layers that may be quantized in the files, by name."""
        is_gguf = self.source.weight_format == "gguf"
        table = {"embed": (model.config.vocab_size, model.config.hidden_size)} if is_gguf else {}
        return {**model.linears, **table}

    def linear(self, name: str, shape: tuple[int, ...]) -> StoredLinear | None:
        """Returns the quantized matrices of a linear layer or the embedding table; None if the layer is plain.

        Args:
          name: Our name of the layer.
          shape: [N, K], or [experts, N, K].

        Raises:
          CheckpointError: The tensors do not match each other or the shape.
        """
        stored = self._names.weight(f"{name}.weight", self._available)
        if isinstance(stored, WholeTensors):
            found = [self._matrix(tensor, (shape[-2], shape[-1])) for tensor in stored.names]
            is_stack = stored.is_stack
        elif isinstance(stored, TensorRows) and not stored.is_transposed and stored.total is not None:
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
        reason = next((matrix.float_reason for matrix in matrices if matrix.float_reason), None)
        if reason is None and len({matrix.format for matrix in matrices}) > 1:
            reason = "its experts have different formats"
        if reason is None and len(shape) == 3:
            reason = "quantized experts are not supported in this version"
        return StoredLinear(matrices=matrices, is_stack=is_stack, float_reason=reason)

    def _block_kind(self, name: str) -> str | None:
        """The kind of GGUF blocks that a linear layer is stored in; None if it is plain or not in a GGUF file."""
        tensor = self._names.weight(f"{name}.weight", self._available).names[0]
        file = self.file_of.get(tensor)
        return file.block_kinds.get(tensor) if isinstance(file, GgufFile) else None

    def _matrix(self, tensor: str, shape: tuple[int, int]) -> StoredMatrix | None:
        """Returns the quantized matrix that takes the place of a plain checkpoint's `tensor`; None if it is plain."""
        if self.source.weight_format == "gguf":
            file = self.file_of.get(tensor)
            if not isinstance(file, GgufFile) or file.block_kinds.get(tensor) not in BLOCK_KINDS:
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
        return self._method.matrix(self.file_of, base, tuple(names), shape)


@dataclass(frozen=True, kw_only=True)
class _Names:
    """The name map of a checkpoint.

    Attributes:
      weight: (our weight name, names of all tensors) -> where the weight is stored.
      is_ignorable: Whether a tensor may be ignored.
    """

    weight: Callable[[str, frozenset[str]], StoredWeight]
    is_ignorable: Callable[[str], bool]


def _hf_names(config: ModelConfig, file_of: Mapping[str, TensorFile]) -> _Names:
    family = HF_FAMILIES[family_of(config)]
    # If no prefix fits, the usual one is taken, so that errors name it.
    fits = (prefix for prefix in family.prefixes if f"{prefix}embed_tokens.weight" in file_of)
    prefix = next(fits, family.prefixes[0])

    def is_ignorable(tensor: str) -> bool:
        # Old exports store RoPE's inverse frequencies, which follow from the config. Some store the head even though it
        # is tied to the embedding. Multimodal models have vision and audio parts.
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
    """Returns tensor name -> the file that holds it, checked against the index if there is one."""
    file_of: dict[str, TensorFile] = {}
    for file in files:
        for tensor in file.entries:
            if tensor in file_of:
                raise CheckpointError(
                    f"{file.path}: tensor {tensor!r} is in {file_of[tensor].path.name} too; remove one of the two files"
                )
            file_of[tensor] = file
    for tensor, path in (source.weight_map or {}).items():
        if tensor not in file_of or file_of[tensor].path != path:
            where = f"it is in {file_of[tensor].path.name}" if tensor in file_of else "it is in no file"
            raise CheckpointError(
                f"{path}: tensor {tensor!r} should be in this file by the index, but {where}; download the files again"
            )
    return file_of


def _describe(format: QFormat) -> str:
    groups = "one scale a row" if format.group is None else f"groups of {format.group}"
    if format.rows is None:
        groups = "one scale"
    elif format.rows > 1:
        groups = f"blocks of {format.rows} x {format.group}"
    zeros = ", with zeros" if format.has_zeros else ""
    order = ", permuted" if format.has_order else ""
    return f"{format.kind}, {groups}{zeros}{order}" + (", int8 activations" if format.activations else "")
