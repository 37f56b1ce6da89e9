"""How far a model's next-token distributions are from a reference's, over the whole vocabulary.

    reference model   -> hidden states of every scored position, on the host, and its head
    (its other weights are dropped)
    other model       -> hidden states, chunk by chunk
                         both heads -> logits [chunk, V] twice -> KL, agreement, likelihoods

So two models are never in memory at once, and of T x V logits two chunks exist at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from ryzjax.errors import ConfigError
from ryzjax.evaluation.batches import evaluation_progress
from ryzjax.evaluation.forward import Forward, Head
from ryzjax.evaluation.statistics import accuracy, mean_and_error, perplexity_metric
from ryzjax.evaluation.text import Window, sliding_windows
from ryzjax.models.abstract import AbstractModel

__all__ = ["Divergence", "ReferenceStates", "check_vocabularies", "divergence", "reference_states"]

_ROWS = 64
"""Positions compared at a time: two such rows of float32 logits exist, 80 MB with 150K tokens of vocabulary."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """A model against a reference, over the scored tokens of one text.

    Attributes:
      tokens: compared positions.
      mean_kl: of KL(reference || model), nats a token.
      kl_standard_error: of that mean, as of independent tokens.
      kl_p99, kl_max: 99th percentile and maximum over the tokens.
      max_logit_difference: largest |difference| of a logit, over tokens and vocabulary.
      top1_agreement: share of positions where both find the same token likeliest.
      top1_low, top1_high: its 95% interval, Wilson's.
      reference_perplexity, perplexity: of the text under each, by the same windows.
      context_tokens, stride_tokens: of the windows.
      tokens_sha256: of the text's tokens as little-endian int32.
    """

    tokens: int
    mean_kl: float
    kl_standard_error: float
    kl_p99: float
    kl_max: float
    max_logit_difference: float
    top1_agreement: float
    top1_low: float
    top1_high: float
    reference_perplexity: float
    perplexity: float
    context_tokens: int
    stride_tokens: int
    tokens_sha256: str


@dataclass(frozen=True, kw_only=True, eq=False)
class ReferenceStates:
    """What is kept of a reference model: enough to have its distributions again.

    Attributes:
      head: its final norm and head.
      hidden: [N, E] on the host, one row a scored token, before the final norm.
      tokens: int32 [T], the text.
      windows: as run; the other model runs the same.
      context_tokens, stride_tokens: of the windows.
    """

    head: Head
    hidden: np.ndarray
    tokens: np.ndarray
    windows: tuple[Window, ...]
    context_tokens: int
    stride_tokens: int


def reference_states(
    model: AbstractModel,
    leaves: tuple[jax.Array, ...],
    tokens: Sequence[int],
    *,
    context_tokens: int,
    stride_tokens: int,
    show_progress: bool = False,
) -> ReferenceStates:
    """Runs the reference. Its weights but those of the head can be dropped afterwards.

    Args:
      model, leaves: as of `Forward`.
      tokens: the text's, special tokens included.
      context_tokens, stride_tokens: as for `sliding_windows`.
      show_progress: a bar on stderr.

    Raises:
      ConfigError: windows longer than the model's context, or a stride that does not fit them.
      DataError: fewer than 2 tokens.
      RequestError: a token outside the vocabulary.
    """
    windows = sliding_windows(len(tokens), context_tokens=context_tokens, stride_tokens=stride_tokens)
    forward = Forward(model, leaves, max_tokens=context_tokens)
    ids = np.asarray(tokens, np.int32)
    parts = [
        np.asarray(hidden)
        for _, hidden in _scored_states(forward, ids, windows, title="reference", show_progress=show_progress)
    ]
    return ReferenceStates(
        head=Head(model, leaves),
        hidden=np.concatenate(parts),
        tokens=ids,
        windows=windows,
        context_tokens=context_tokens,
        stride_tokens=stride_tokens,
    )


def divergence(
    reference: ReferenceStates,
    model: AbstractModel,
    leaves: tuple[jax.Array, ...],
    *,
    show_progress: bool = False,
) -> Divergence:
    """Compares a model with a reference that has been run, in float32 over the whole vocabulary.

    Rounding errs by about 1e-9 nats where the models are close; a model against itself has exactly 0.

    Args:
      model, leaves: as of `Forward`; under any placement, also another one than the reference's.
      show_progress: a bar on stderr.

    Raises:
      ConfigError: the vocabularies differ in size, or the model's context is shorter than the windows.
    """
    check_vocabularies(reference.head.model, model)
    forward = Forward(model, leaves, max_tokens=reference.context_tokens)
    compare = _Comparison(reference.head, Head(model, leaves))
    columns: list[np.ndarray] = []
    at = 0
    for targets, hidden in _scored_states(
        forward, reference.tokens, reference.windows, title="KL", show_progress=show_progress
    ):
        for row in range(0, len(targets), _ROWS):
            count = min(_ROWS, len(targets) - row)
            columns.append(
                compare(
                    reference.hidden[at : at + count],
                    np.asarray(hidden[row : row + count]),
                    reference.tokens[targets[row : row + count]],
                )
            )
            at += count
    kl, same, apart, reference_nll, nll = np.concatenate(columns, axis=1).astype(np.float64)
    mean, error = mean_and_error(kl)
    agreement = accuracy([bool(value) for value in same])
    return Divergence(
        tokens=len(kl),
        mean_kl=mean,
        kl_standard_error=error,
        kl_p99=float(np.percentile(kl, 99)),
        kl_max=float(kl.max()),
        max_logit_difference=float(apart.max()),
        top1_agreement=agreement.value,
        top1_low=agreement.low,
        top1_high=agreement.high,
        reference_perplexity=perplexity_metric(reference_nll).value,
        perplexity=perplexity_metric(nll).value,
        context_tokens=reference.context_tokens,
        stride_tokens=reference.stride_tokens,
        tokens_sha256=hashlib.sha256(reference.tokens.astype("<i4").tobytes()).hexdigest(),
    )


def check_vocabularies(reference: AbstractModel, model: AbstractModel) -> None:
    """Raises ConfigError where two models' distributions are not over as many tokens."""
    ours, theirs = model.config.vocab_size, reference.config.vocab_size
    if ours != theirs:
        raise ConfigError(
            f"the model has vocab_size={ours} and the reference {theirs}; distributions can be compared over one "
            "vocabulary only: take a reference of the same tokenizer and padding"
        )


def _scored_states(
    forward: Forward, ids: np.ndarray, windows: Sequence[Window], *, title: str, show_progress: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(indices of the tokens [N], hidden states [N, E] that predict them), chunk by chunk; each token once."""
    with evaluation_progress(show=show_progress) as progress:
        task = progress.add_task(title, total=len(windows))
        for window in windows:
            position = window.begin
            # The last token predicts nothing that is scored here.
            for chunk in forward.chunks(ids[window.begin : window.end - 1].tolist()):
                predicted = position + 1 + np.arange(chunk.shape[0])
                position += chunk.shape[0]
                scored = predicted >= window.first_target
                if scored.any():
                    yield predicted[scored], np.asarray(chunk)[scored]
            progress.advance(task)


class _Comparison:
    """Both heads over the same positions, padded to one shape."""

    def __init__(self, reference: Head, head: Head):
        self._reference = reference
        self._head = head
        self._columns = jax.jit(_columns, out_shardings=head.model.placement.replicated)

    def __call__(self, reference_hidden: np.ndarray, hidden: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """float32 [5, N]: KL, whether the likeliest tokens agree, largest |difference| of a logit, and both negative
        log-likelihoods.
        """
        reference = self._reference.logits(_padded(reference_hidden))
        # The two models may be on different devices.
        reference = jax.device_put(reference, self._head.model.placement.replicated)
        columns = self._columns(reference, self._head.logits(_padded(hidden)), _padded(targets))
        return np.asarray(columns)[:, : len(targets)]


def _padded(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.zeros((_ROWS - len(rows), *rows.shape[1:]), rows.dtype)])


def _columns(reference: jax.Array, logits: jax.Array, targets: jax.Array) -> jax.Array:
    p, q = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    ratio = q - p
    # sum p (p - q), with sum (exp q - exp p) = 0 added: what float32 loses then is of second order in the ratio.
    near = jnp.exp(p) * (jnp.expm1(ratio) - ratio)
    far = jnp.exp(q) - jnp.exp(p) - jnp.exp(p) * ratio
    kl = jnp.sum(jnp.where(jnp.abs(ratio) < 1, near, far), axis=-1)
    same = jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)
    likelihoods = (-jnp.take_along_axis(x, targets[:, None], axis=-1)[:, 0] for x in (p, q))
    apart = jnp.max(jnp.abs(reference - logits), axis=-1)
    return jnp.stack([kl, same.astype(jnp.float32), apart, *likelihoods])
