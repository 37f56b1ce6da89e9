"""AdaptedLinear: a linear layer and the low-rank update beside it; `attach` puts them into a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from ryzjax.layers.linear import Linear
from ryzjax.lora.adapter import LoraWeights
from ryzjax.ops.linear.reference import project_plain

__all__ = ["AdaptedLinear", "Dropout", "DropoutKey", "attach", "low_rank_update", "module_at"]


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """Dropout of one layer's input.

    Attributes:
      rate: share of the inputs that are zero.
      key: of this step and layer.
    """

    rate: float
    key: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """The same shape: kept inputs are multiplied by 1 / (1 - rate)."""
        keep = jax.random.bernoulli(self.key, 1.0 - self.rate, x.shape)
        return jnp.where(keep, x / (1.0 - self.rate), 0).astype(x.dtype)


class DropoutKey(nnx.Variable):
    """The key in a module's state, so that whoever calls it for a part of its tokens can give each part its own."""


def low_rank_update(
    x: Float[Array, "T K"], a: Float[Array, "r K"], b: Float[Array, "N r"], scale: float
) -> Float[Array, "T N"]:
    """scale * x A^T B^T in float32. A and B are rounded to the dtype of x, and so is x A^T: as in serving."""
    inner = project_plain(x, a.astype(x.dtype)).astype(x.dtype)
    return scale * project_plain(inner, b.astype(x.dtype))


class AdaptedLinear(nnx.Module):
    """y = W x + scale * B A x + bias, in a linear layer's place; DoRA where there is a magnitude.

    DoRA (Liu et al., arXiv 2402.09353) is y = m / |W + scale * B A| * (W + scale * B A) x + bias, with the norm of each
    row held constant for the gradient (section 4.3). The norm needs no dense update: |W|^2 + 2 s B (W A^T) + s^2
    (B A)(B A)^T by rows, with W A^T from the layer itself.

    Args:
      base: the layer, frozen or not.
      weights: of this layer alone.
      scale: of the update.
      row_norms: |W| of each row, float32 [N]; for DoRA.
      dropout: of the update's input; None in evaluation.
    """

    def __init__(
        self,
        base: Linear,
        weights: LoraWeights,
        scale: float,
        *,
        row_norms: jax.Array | None = None,
        dropout: Dropout | None = None,
    ):
        self.base = base
        self.a = nnx.Param(weights.a)
        self.b = nnx.Param(weights.b)
        self.magnitude = None if weights.magnitude is None else nnx.Param(weights.magnitude)
        self.row_norms = None if row_norms is None else nnx.Variable(row_norms)
        self.scale = scale
        self.dropout_rate = 0.0 if dropout is None else dropout.rate
        self.dropout_key = None if dropout is None else DropoutKey(dropout.key)

    def __call__(self, x: jax.Array) -> jax.Array:
        """[T, K] -> float32 [T, N]."""
        a, b = self.a[...], self.b[...]
        kept = x if self.dropout_key is None else Dropout(rate=self.dropout_rate, key=self.dropout_key[...])(x)
        update = low_rank_update(kept, a, b, self.scale)
        if self.magnitude is None:
            return self.base(x) + update
        bias = 0.0 if self.base.bias is None else self.base.bias[...].astype(jnp.float32)
        gain = self.magnitude[...] / jax.lax.stop_gradient(self._norms(a, b, bias))
        return gain * (self.base(x) - bias + update) + bias

    def _norms(self, a: jax.Array, b: jax.Array, bias: jax.Array | float) -> jax.Array:
        """|W + scale * B A| of each row, float32 [N]."""
        assert self.row_norms is not None, "DoRA needs the norms of the base's rows"
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        crossed = self.base(a) - bias  # A W^T, [r, N]
        cross = jnp.einsum("NR,RN->N", b, crossed)
        update = jnp.einsum("NR,RS,NS->N", b, a @ a.T, b)
        squared = jnp.square(self.row_norms[...]) + 2.0 * self.scale * cross + self.scale**2 * update
        return jnp.sqrt(jnp.maximum(squared, jnp.finfo(jnp.float32).tiny))


def attach(
    module: nnx.Module,
    weights: Mapping[str, LoraWeights],
    scales: Mapping[str, float],
    *,
    row_norms: Mapping[str, jax.Array] | None = None,
    dropout: Mapping[str, Dropout] | None = None,
) -> None:
    """Puts an AdaptedLinear in the place of each named layer; inside jit, on a module merged there.

    Args:
      module: a Decoder or a Block.
      weights: path of a layer in `module` ("attention.q" of a block) -> its update.
      scales, row_norms, dropout: of the same paths.
    """
    for path, update in weights.items():
        owner, name = module_at(module, path)
        base = getattr(owner, name)
        assert isinstance(base, Linear), f"{path} is a {type(base).__name__}"
        adapted = AdaptedLinear(
            base,
            update,
            scales[path],
            row_norms=None if row_norms is None else row_norms.get(path),
            dropout=None if dropout is None else dropout.get(path),
        )
        setattr(owner, name, adapted)


def module_at(module: nnx.Module, path: str) -> tuple[nnx.Module, str]:
    """(the module that owns it, its name there) of a layer by its dotted path; numbers index lists."""
    *owners, name = path.split(".")
    for part in owners:
        module = module[int(part)] if isinstance(module, nnx.List) else getattr(module, part)  # pyright: ignore
    return module, name
