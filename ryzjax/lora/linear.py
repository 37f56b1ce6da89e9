"""AdaptedLinear: a linear layer with a low-rank update. `attach` puts adapted layers into a model."""

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
    """Dropout of the input of one layer's update.

    Attributes:
      rate: The share of the inputs that are set to zero.
      key: The random key of this step and layer.
    """

    rate: float
    key: jax.Array

    def __call__(self, x: jax.Array) -> jax.Array:
        """Applies the dropout. Kept inputs are multiplied by 1 / (1 - rate)."""
        keep = jax.random.bernoulli(self.key, 1.0 - self.rate, x.shape)
        return jnp.where(keep, x / (1.0 - self.rate), 0).astype(x.dtype)


class DropoutKey(nnx.Variable):
    """The dropout key as module state, so that a caller that splits the tokens can give each part a key of its own."""


def low_rank_update(
    x: Float[Array, "T K"], a: Float[Array, "r K"], b: Float[Array, "N r"], scale: float
) -> Float[Array, "T N"]:
    """Returns scale * x A^T B^T in float32. A, B and x A^T are rounded to the dtype of `x`, as in serving."""
    inner = project_plain(x, a.astype(x.dtype)).astype(x.dtype)
    return scale * project_plain(inner, b.astype(x.dtype))


class AdaptedLinear(nnx.Module):
    """A linear layer with a low-rank update: y = W x + scale * B A x + bias. With a magnitude, it is a DoRA layer.

    DoRA (Liu et al., arXiv 2402.09353) is y = m / |W + scale * B A| * (W + scale * B A) x + bias, where |.| is the norm
    of each row. The gradient treats the norm as a constant (section 4.3). The norm is computed without the dense
    update, row by row, from |W|^2 + 2 scale B (W A^T) + scale^2 (B A)(B A)^T. The layer itself computes W A^T.

    Args:
      base: The linear layer.
      weights: The update of this layer.
      scale: The factor of the update.
      row_norms: The norm of each row of W, float32 [N]. Required for DoRA.
      dropout: The dropout of the update's input; None in evaluation.
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

    def __call__(self, x: Float[Array, "T K"]) -> Float[Array, "T N"]:
        """Returns the float32 output of the layer."""
        a, b = self.a[...], self.b[...]
        kept = x if self.dropout_key is None else Dropout(rate=self.dropout_rate, key=self.dropout_key[...])(x)
        update = low_rank_update(kept, a, b, self.scale)
        if self.magnitude is None:
            return self.base(x) + update
        bias = 0.0 if self.base.bias is None else self.base.bias[...].astype(jnp.float32)
        gain = self.magnitude[...] / jax.lax.stop_gradient(self._norms(a, b, bias))
        return gain * (self.base(x) - bias + update) + bias

    def _norms(
        self, a: Float[Array, "r K"], b: Float[Array, "N r"], bias: Float[Array, " N"] | float
    ) -> Float[Array, " N"]:
        """Returns the norm of each row of W + scale * B A, in float32."""
        assert self.row_norms is not None, "DoRA needs the norms of the base's rows"
        a, b = a.astype(jnp.float32), b.astype(jnp.float32)
        a_w = self.base(a) - bias  # A W^T, [r, N]
        cross = jnp.einsum("Nr,rN->N", b, a_w)
        update = jnp.einsum("Nr,rs,Ns->N", b, a @ a.T, b)
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
    """Replaces each named layer by an AdaptedLinear. Call it inside jit, on a module that was merged there.

    Args:
      module: A Decoder or a Block.
      weights: Path of a layer in `module` ("attention.q" in a block) -> its update.
      scales: Path -> factor of the update.
      row_norms: Path -> norms of the rows of the weight, float32 [N], for DoRA.
      dropout: Path -> dropout of the update's input.
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
    """Returns the module that owns a layer, and its attribute name there, by its dotted path. Numbers index lists."""
    *owners, name = path.split(".")
    for part in owners:
        module = module[int(part)] if isinstance(module, nnx.List) else getattr(module, part)  # pyright: ignore
    return module, name
