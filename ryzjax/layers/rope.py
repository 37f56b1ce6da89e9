"""RoPE and its scalings, one frozen dataclass each: what to compute, and how.

A plain rope's frequencies depend on nothing but its config and are constants of the step. Two scalings depend on
the length of the sequence too, and take it per token as `lengths`: a token of the prompt has the prompt's length,
a generated one its position + 1. That makes a token's rotation a function of its own request, whatever chunk of
the prompt it is computed in and whoever shares the step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.dims import Float32Array
from ryzjax.ops.rope import rope_cos_sin

__all__ = ["DynamicRope", "FactorRope", "LinearRope", "Llama3Rope", "LongRope", "Rope", "YarnRope"]


@dataclass(frozen=True, kw_only=True)
class Rope:
    """Rotary position embedding (Su et al., arXiv 2104.09864) without scaling.

    Attributes:
      theta: base of the geometric series of wavelengths.
      rotary_dim: leading features of a head that are rotated; head_dim unless the model is "partial rotary".
    """

    theta: float
    rotary_dim: int

    def cos_sin(self, positions: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """float32 cos and sin [T, rotary_dim / 2].

        Args:
          positions: int [T], of each token in its sequence.
          lengths: int [T], of the sequence each token belongs to; see the module's docstring.
        """
        del lengths
        return rope_cos_sin(positions, self.inv_freq(), 1.0)

    def inv_freq(self) -> Float32Array:
        """Inverse frequencies theta^(-2i / rotary_dim), [rotary_dim / 2], computed on the host."""
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float32) / np.float32(self.rotary_dim)
        return (1.0 / np.float32(self.theta) ** exponents).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class LinearRope(Rope):
    """Positions divided by `factor` (kaiokendev; Chen et al., arXiv 2306.15595)."""

    factor: float

    def inv_freq(self) -> Float32Array:
        """As `Rope.inv_freq`, divided by the factor."""
        return super().inv_freq() / np.float32(self.factor)


@dataclass(frozen=True, kw_only=True)
class FactorRope(Rope):
    """Each frequency divided by a factor of its own: how GGUF files store Llama 3's scaling.

    Attributes:
      factors: rotary_dim / 2 divisors.
    """

    factors: tuple[float, ...]

    def inv_freq(self) -> Float32Array:
        """As `Rope.inv_freq`, divided by the factors."""
        return super().inv_freq() / np.array(self.factors, np.float32)


@dataclass(frozen=True, kw_only=True)
class DynamicRope(Rope):
    """Dynamic NTK: past `original_max_position` the base grows with the sequence (bloc97 and emozilla).

    The formula is that of transformers' `_compute_dynamic_ntk_parameters`.
    """

    factor: float
    original_max_position: int

    def cos_sin(self, positions: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """As `Rope.cos_sin`, with the base of each token's own length."""
        length = jnp.maximum(lengths, self.original_max_position).astype(jnp.float32)
        stretch = self.factor * length / self.original_max_position - (self.factor - 1)
        # theta * stretch^(d / (d - 2)) to the power -2i/d, without leaving float32's range.
        exponents = np.arange(0, self.rotary_dim, 2, dtype=np.float32) / np.float32(self.rotary_dim)
        growth = stretch[:, None] ** (-exponents * np.float32(self.rotary_dim / (self.rotary_dim - 2)))
        return rope_cos_sin(positions, self.inv_freq() * growth, 1.0)


@dataclass(frozen=True, kw_only=True)
class YarnRope(Rope):
    """YaRN (Peng et al., arXiv 2309.00071): long wavelengths interpolated, short ones kept, a ramp between.

    Attributes:
      factor: interpolation of the long wavelengths.
      original_max_position: context before scaling.
      beta_fast, beta_slow: rotations over that context where the ramp begins and ends.
      attention_factor: multiplies cos and sin.
      truncate: round the ramp's ends to whole dimensions (GPT-OSS does not).
    """

    factor: float
    original_max_position: int
    beta_fast: float
    beta_slow: float
    attention_factor: float
    truncate: bool

    def cos_sin(self, positions: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """As `Rope.cos_sin`, times the attention factor."""
        del lengths
        return rope_cos_sin(positions, self.inv_freq(), self.attention_factor)

    def inv_freq(self) -> Float32Array:
        """As `Rope.inv_freq`, blended with its interpolation along the ramp."""
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
        """The (fractional) pair of features that turns `rotations` times over the original context."""
        return (
            self.rotary_dim
            * math.log(self.original_max_position / (rotations * 2 * math.pi))
            / (2 * math.log(self.theta))
        )


@dataclass(frozen=True, kw_only=True)
class Llama3Rope(Rope):
    """Llama 3.1: long wavelengths divided by `factor`, short ones kept, those between blended.

    Source: the Llama 3.1 reference, as transformers' `_compute_llama3_parameters` has it.

    Attributes:
      low_freq_factor, high_freq_factor: the original context divided by these bounds the blend.
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position: int

    def inv_freq(self) -> Float32Array:
        """As `Rope.inv_freq`, scaled."""
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
    """LongRoPE (Ding et al., arXiv 2402.13753): a factor a frequency, one set for short sequences, one for long.

    A sequence that grows past `original_max_position` needs all its keys anew: the scheduler computes it again
    from its first token (`switch_length`).

    Attributes:
      short_factor, long_factor: rotary_dim / 2 divisors of the frequencies.
      original_max_position: longest sequence that takes the short ones.
      attention_factor: multiplies cos and sin.
    """

    short_factor: tuple[float, ...]
    long_factor: tuple[float, ...]
    original_max_position: int
    attention_factor: float

    def cos_sin(self, positions: jax.Array, lengths: jax.Array) -> tuple[jax.Array, jax.Array]:
        """As `Rope.cos_sin`, by the set of factors that each token's length asks for."""
        plain = self.inv_freq()
        short, long = (plain / np.array(f, np.float32) for f in (self.short_factor, self.long_factor))
        inv_freq = jnp.where((lengths > self.original_max_position)[:, None], long, short)
        return rope_cos_sin(positions, inv_freq, self.attention_factor)

    @property
    def switch_length(self) -> int:
        """Tokens after which a sequence's rotations change for all its positions."""
        return self.original_max_position
