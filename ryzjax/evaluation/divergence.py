"""The divergence of a model's next-token distributions from those of a reference model, over the whole vocabulary.

1. The reference runs over the text. The hidden states of all scored positions go to the host. Of its weights, only
   those of the head are kept.
2. The other model runs over the text, chunk by chunk.
3. For each chunk, both heads compute logits, from which KL divergence, agreement and likelihoods follow.

Two whole models are therefore never in memory at once. Of the T x V logits, two chunks exist at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ryzjax.errors import ConfigError
from ryzjax.evaluation.batches import evaluation_progress
from ryzjax.evaluation.forward import Forward, Head
from ryzjax.evaluation.statistics import accuracy, mean_and_error, perplexity_metric
from ryzjax.evaluation.text import Window, sliding_windows
from ryzjax.models.abstract import AbstractModel

__all__ = [
    "Divergence",
    "ReferenceStates",
    "check_vocabularies",
    "divergence",
    "reference_states",
    "summarize",
    "token_figures",
]

_ROWS = 64
"""The number of positions compared at a time. Two such chunks of float32 logits take 80 MB with 150K token ids."""


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The divergence of a model from a reference, over the scored tokens of one text.

    Attributes:
      tokens: The number of compared positions.
      mean_kl: The mean of KL(reference || model), in nats per token.
      kl_standard_error: The standard error of that mean, if tokens were independent.
      kl_p99, kl_max: The 99th percentile and the maximum of the KL over the tokens.
      max_logit_difference: The largest absolute difference of a logit, over tokens and vocabulary.
      top1_agreement: The share of positions at which both models give the same token the highest probability.
      top1_low, top1_high: The ends of Wilson's 95% interval of that share.
      reference_perplexity, perplexity: The perplexity of the text under each model, with the same windows.
      context_tokens, stride_tokens: The length and the distance of the windows.
      tokens_sha256: The SHA-256 of the text's token ids as little-endian int32.
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
    """The part of a reference model from which its distributions over one text can be computed.

    Attributes:
      head: The final norm and the head.
      hidden: The hidden states before the final norm on the host, [S, E], one row for each scored token.
      tokens: The token ids of the text, int32 [T].
      windows: The windows of the text. The other model runs the same windows.
      context_tokens, stride_tokens: The length and the distance of the windows.
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
    """Runs the reference model over a text. The result holds the weights of the head and no others.

    Args:
      model: The abstract reference model.
      leaves: Its weights, in the order of `model.weights`.
      tokens: The token ids of the text, with special tokens.
      context_tokens, stride_tokens: The length and the distance of the windows, for `sliding_windows`.
      show_progress: Whether to show a progress bar on stderr.

    Raises:
      ConfigError: The windows are longer than the model's context, or the stride does not fit them.
      DataError: There are fewer than 2 tokens.
      RequestError: A token id is outside the vocabulary.
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

    The rounding error of the KL is about 1e-9 nats if the models are close. A model has a KL of exactly 0 from itself.

    Args:
      reference: The result of `reference_states`.
      model: The abstract model. Its placement may differ from the reference's.
      leaves: Its weights, in the order of `model.weights`.
      show_progress: Whether to show a progress bar on stderr.

    Raises:
      ConfigError: The vocabularies differ in size, or the model's context is shorter than the windows.
    """
    return summarize(reference, token_figures(reference, model, leaves, show_progress=show_progress))


def token_figures(
    reference: ReferenceStates,
    model: AbstractModel,
    leaves: tuple[jax.Array, ...],
    *,
    title: str = "KL",
    show_progress: bool = False,
) -> np.ndarray:
    """Compares a model with a reference at each scored position. Arguments and errors are those of `divergence`.

    Args:
      title: The title of the progress bar.

    Returns:
      float64 [5, S]: the KL, whether the most likely tokens agree (0 or 1), the largest absolute difference of a logit,
      and the negative log-likelihoods of the token under the reference and under the model.
    """
    check_vocabularies(reference.head.model, model)
    forward = Forward(model, leaves, max_tokens=reference.context_tokens)
    compare = _Comparison(reference.head, Head(model, leaves))
    figures: list[np.ndarray] = []
    at = 0
    for targets, hidden in _scored_states(
        forward, reference.tokens, reference.windows, title=title, show_progress=show_progress
    ):
        for row in range(0, len(targets), _ROWS):
            count = min(_ROWS, len(targets) - row)
            figures.append(
                compare(
                    reference.hidden[at : at + count],
                    np.asarray(hidden[row : row + count]),
                    reference.tokens[targets[row : row + count]],
                )
            )
            at += count
    return np.concatenate(figures, axis=1).astype(np.float64)


def summarize(reference: ReferenceStates, figures: np.ndarray) -> Divergence:
    """Returns the divergence that the result of `token_figures` amounts to."""
    kl, same, apart, reference_nll, nll = figures
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
    """Raises ConfigError if the vocabularies of two models differ in size."""
    ours, theirs = model.config.vocab_size, reference.config.vocab_size
    if ours != theirs:
        raise ConfigError(
            f"the model has vocab_size={ours} and the reference {theirs}; distributions can only be "
            "compared over one vocabulary; use a reference with the same tokenizer and padding"
        )


def _scored_states(
    forward: Forward, ids: np.ndarray, windows: Sequence[Window], *, title: str, show_progress: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields (indices of scored tokens [S], hidden states [S, E] that predict them), for each chunk of each window."""
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
    """Runs both heads over the same positions, padded to one shape."""

    def __init__(self, reference: Head, head: Head):
        self._reference = reference
        self._head = head
        self._figures = jax.jit(_figures, out_shardings=head.model.placement.replicated)

    def __call__(self, reference_hidden: np.ndarray, hidden: np.ndarray, targets: np.ndarray) -> np.ndarray:
        """Returns the figures of `_figures` for some positions, float32 [5, S].

        Args:
          reference_hidden, hidden: The hidden states of both models, [S, E].
          targets: The tokens that follow the positions, int32 [S].
        """
        reference = self._reference.logits(_padded(reference_hidden))
        # The two models may be on different devices.
        reference = jax.device_put(reference, self._head.model.placement.replicated)
        figures = self._figures(reference, self._head.logits(_padded(hidden)), _padded(targets))
        return np.asarray(figures)[:, : len(targets)]


def _padded(rows: np.ndarray) -> np.ndarray:
    return np.concatenate([rows, np.zeros((_ROWS - len(rows), *rows.shape[1:]), rows.dtype)])


def _figures(
    reference: Float[Array, "S V"], logits: Float[Array, "S V"], targets: Int[Array, " S"]
) -> Float[Array, "5 S"]:
    """Returns five figures for each position, in float32.

    They are the KL, whether the most likely tokens agree (0 or 1), the largest absolute difference of a logit, and the
    negative log-likelihoods of the target under the reference and under the model.
    """
    p, q = jax.nn.log_softmax(reference), jax.nn.log_softmax(logits)
    ratio = q - p
    # For log-probabilities p and q, KL is sum exp(p) (p - q). Adding sum (exp q - exp p) = 0 makes the rounding error
    # of float32 second-order in q - p.
    near = jnp.exp(p) * (jnp.expm1(ratio) - ratio)
    far = jnp.exp(q) - jnp.exp(p) - jnp.exp(p) * ratio
    kl = jnp.sum(jnp.where(jnp.abs(ratio) < 1, near, far), axis=-1)
    same = jnp.argmax(p, axis=-1) == jnp.argmax(q, axis=-1)
    likelihoods = (-jnp.take_along_axis(x, targets[:, None], axis=-1)[:, 0] for x in (p, q))
    apart = jnp.max(jnp.abs(reference - logits), axis=-1)
    return jnp.stack([kl, same.astype(jnp.float32), apart, *likelihoods])
