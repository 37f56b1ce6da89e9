"""RoPE and its scalings. Each is a frozen dataclass that computes the cos and sin of a step's tokens.

The frequencies of most ropes depend on the model's config alone and are constants of the compiled step. Two scalings
(`DynamicRope` and `LongRope`) also depend on the length of the sequence. `lengths` gives it for each token: the length
of the prompt for a token of the prompt, and position + 1 for a generated token. A token's rotation is therefore a
function of its own request. It depends neither on the chunks in which the prompt is computed nor on the other requests
of the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ryzjax.dims import Float32Array
from ryzjax.ops.rope import rope_cos_sin

__all__ = ["DynamicRope", "FactorRope", "LinearRope", "Llama3Rope", "LongRope", "Rope", "YarnRope"]


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding (Su et al., arXiv 2104.09864) without scaling.

    Attributes:
      theta: the base of the geometric series of wavelengths.
      rotary_dim: the number of leading features of a head that are rotated. It is head_dim, or less for a model with
        partial rotary embedding.
    """

    theta: float
    rotary_dim: int

    def cos_sin(
        self, positions: Int[Array, " T"], lengths: Int[Array, " T"]
    ) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
        """Returns float32 cos and sin of T tokens, with half = rotary_dim / 2.

        Args:
          positions: the position of each token in its sequence.
          lengths: the length of the prompt for a token of the prompt, position + 1 for a generated token. Only
            `DynamicRope` and `LongRope` read it.
        """
        del lengths
        return rope_cos_sin(positions, self.inv_freq(), 1.0)

    def inv_freq(self) -> Float32Array:
        """Returns the inverse frequencies theta^(-2i / rotary_dim), [rotary_dim / 2], computed on the host."""
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float32) / np.float32(self.rotary_dim)
        return (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class LinearRope(Rope):
    """Position interpolation: positions are divided by `factor` (kaiokendev; Chen et al., arXiv 2306.15595)."""

    factor: float

    def inv_freq(self) -> Float32Array:
        """Returns the inverse frequencies of `Rope`, divided by the factor."""
        return super().inv_freq() / np.float32(self.factor)


@dataclass(frozen=True, kw_only=True)
class FactorRope(Rope):
    """Each frequency is divided by its own factor. GGUF files store Llama 3's scaling in this form.

    Attributes:
      factors: the rotary_dim / 2 divisors.
    """

    factors: tuple[float, ...]

    def inv_freq(self) -> Float32Array:
        """Returns the inverse frequencies of `Rope`, divided by the factors."""
        return super().inv_freq() / np.array(self.factors, np.float32)


@dataclass(frozen=True, kw_only=True)
class DynamicRope(Rope):
    """Dynamic NTK scaling: the base grows with a sequence longer than `original_max_position` (bloc97 and emozilla).

    The formula is that of transformers' `_compute_dynamic_ntk_parameters`.

    Attributes:
      factor: how fast the base grows.
      original_max_position: the longest sequence, in tokens, that keeps the base.
    """

    factor: float
    original_max_position: int

    def cos_sin(
        self, positions: Int[Array, " T"], lengths: Int[Array, " T"]
    ) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
        """Returns cos and sin as `Rope.cos_sin` does. The base of each token follows from its own length."""
        length = jnp.maximum(lengths, self.original_max_position).astype(jnp.float32)
        stretch = self.factor * length / self.original_max_position - (self.factor - 1)
        # This is (theta * stretch^(d / (d - 2)))^(-2i / d) in two factors that stay within float32's range.
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float32) / np.float32(self.rotary_dim)
        growth = stretch[:, None] ** (-exponents * np.float32(self.rotary_dim / (self.rotary_dim - 2)))
        return rope_cos_sin(positions, self.inv_freq() * growth, 1.0)


@dataclass(frozen=True, kw_only=True)
class YarnRope(Rope):
    """YaRN (Peng et al., arXiv 2309.00071): interpolates long wavelengths, keeps short ones, and blends those between.

    The weight of the interpolation rises linearly (the ramp) from the short wavelengths to the long ones.

    Attributes:
      factor: the factor by which long wavelengths are interpolated.
      original_max_position: the context length before scaling, in tokens.
      beta_fast, beta_slow: the numbers of rotations over that context at which the ramp starts and ends.
      attention_factor: a factor of cos and sin.
      truncate: whether the ends of the ramp are rounded to whole dimensions. GPT-OSS does not round them.
    """

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool

    def cos_sin(
        self, positions: Int[Array, " T"], lengths: Int[Array, " T"]
    ) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
        """Returns cos and sin as `Rope.cos_sin` does, times the attention factor."""
        del lengths
        return rope_cos_sin(positions, self.inv_freq(), self.attention_factor)

    def inv_freq(self) -> Float32Array:
        """Returns the inverse frequencies of `Rope`, blended with their interpolation along the ramp."""
        low, high = self._dimension(self.beta_fast), self._dimension(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        low, high = max(low, 0), min(high, self.rotary_dim - 1)
        width = np.float32(high - low if high != low else 0.001)
        index = np.arange(self.rotary_dim // 2, dtype=np.float32)
        ramp = np.clip((index - np.float32(low)) / width, 0, 1)
        plain = super().inv_freq()
        return (plain / np.float32(self.factor) * ramp + plain * (1 - ramp)).astype(np.float32)

    def _dimension(self, rotations: float) -> float:
        """Returns the index, not rounded, of the pair of features that rotates so often over the original context."""
        return (
            self.rotary_dim
            * math.log(self.original_max_position / (rotations * 2 * math.pi))
            / (2 * math.log(self.theta))
        )


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(Rope):
    """Llama 3.1: divides low frequencies by `factor`, keeps high ones, and blends those between.

    The formula is that of the Llama 3.1 reference and of transformers' `_compute_llama3_parameters`.

    Attributes:
      factor: the divisor of the low frequencies.
      low_freq_factor, high_freq_factor: the original context divided by these gives the longest and the shortest
        wavelength that is blended.
      original_max_position: the context length before scaling, in tokens.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def inv_freq(self) -> Float32Array:
        """Returns the scaled inverse frequencies."""
        plain = super().inv_freq()
        wavelength = 2 * math.pi / plain
        low_wavelength = self.original_max_position / self.low_freq_factor
        high_wavelength = self.original_max_position / self.high_freq_factor
        smooth = (self.original_max_position / wavelength - self.low_freq_factor) / (
            self.high_freq_factor - self.low_freq_factor
        )
        blended = (1 - smooth) * plain / self.factor + smooth * plain
        scaled = np.where(wavelength > low_wavelength, plain / self.factor, plain)
        between = (wavelength <= low_wavelength) & (wavelength >= high_wavelength)
        return np.where(between, blended, scaled).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class LongRope(Rope):
    """LongRoPE (Ding et al., arXiv 2402.13753): one factor for each frequency, in one set for short and one for long
    sequences.

    If a sequence grows past `original_max_position`, the keys of all its tokens change. The scheduler then computes the
    sequence again from its first token (`switch_length`).

    Attributes:
      short_factor, long_factor: the rotary_dim / 2 divisors of the frequencies.
      original_max_position: the longest sequence, in tokens, that takes `short_factor`.
      attention_factor: a factor of cos and sin.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position: int
    attention_factor: float

    def cos_sin(
        self, positions: Int[Array, " T"], lengths: Int[Array, " T"]
    ) -> tuple[Float[Array, "T half"], Float[Array, "T half"]]:
        """Returns cos and sin as `Rope.cos_sin` does. The length of each token selects its set of factors."""
        plain = self.inv_freq()
        short, long = (plain / np.array(f, np.float32) for f in (self.short_factor, self.long_factor))
        inv_freq = jnp.where((lengths > self.original_max_position)[:, None], long, short)
        return rope_cos_sin(positions, inv_freq, self.attention_factor)

    @property
    def switch_length(self) -> int:
        """The longest sequence, in tokens, before the rotations of all its positions change."""
        return self.original_max_position
