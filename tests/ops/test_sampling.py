"""Sampling against numpy: tokens, statistics, and independence of the other rows."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ryzjax.ops.sampling.sampling import MAX_TOP, PROMPT_BIT, STOP_BIT, SamplingInputs, sample

VOCAB = 97


def inputs(rows: int, **changes: object) -> SamplingInputs:
    """Returns greedy settings for `rows` rows, with changes that are scalars or have one value per row."""
    base = {
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "min_p": 0.0,
        "repetition": 1.0,
        "presence": 0.0,
        "frequency": 0.0,
        "output_index": 0,
        "use_history": False,
        "ban_stops": False,
        "wants_top": False,
    } | changes
    kinds = {"top_k": jnp.int32, "output_index": jnp.int32, "use_history": bool, "ban_stops": bool, "wants_top": bool}
    seed = jnp.stack([jnp.zeros(rows, jnp.uint32), jnp.arange(rows, dtype=jnp.uint32)], axis=1)
    arrays = {
        n: jnp.broadcast_to(jnp.asarray(v, kinds.get(n, jnp.float32)), (rows,)) for n, v in base.items() if n != "seed"
    }
    return SamplingInputs(seed=base.get("seed", seed), **arrays)


def run(
    logits: np.ndarray, settings: SamplingInputs, history: np.ndarray | None = None, bias: np.ndarray | None = None
):
    rows, vocab = logits.shape
    history = np.zeros((rows, vocab), np.int32) if history is None else history
    bias = np.zeros((rows, vocab), np.float32) if bias is None else bias
    return jax.jit(sample)(jnp.asarray(logits), settings, jnp.asarray(history), jnp.asarray(bias), jnp.arange(rows))


@pytest.fixture
def logits() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((4, VOCAB)).astype(np.float32) * 3


def log_softmax(x: np.ndarray) -> np.ndarray:
    x = x - x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_greedy_and_logprobs(logits: np.ndarray):
    out = run(logits, inputs(4, wants_top=[True, False, True, False]))
    expected = log_softmax(logits)
    assert out.token.tolist() == logits.argmax(-1).tolist()
    np.testing.assert_allclose(out.logprob, expected.max(-1), atol=1e-5)
    order = np.argsort(-logits, axis=-1)[:, :MAX_TOP]
    assert np.array_equal(out.top_tokens, order)
    np.testing.assert_allclose(out.top_logprobs, np.take_along_axis(expected, order, -1), atol=1e-5)
    assert out.rank.tolist() == [1] * 4


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({"top_k": 5}, lambda p: set(np.argsort(-p)[:5])),
        ({"top_k": 1}, lambda p: {p.argmax()}),
        ({"top_k": 10_000}, lambda p: set(range(VOCAB))),
        ({"top_p": 0.7}, lambda p: set(np.argsort(-p)[: 1 + int((np.cumsum(np.sort(p)[::-1]) < 0.7).sum())])),
        ({"top_p": 1e-6}, lambda p: {p.argmax()}),
        ({"min_p": 0.2}, lambda p: set(np.flatnonzero(p >= 0.2 * p.max()))),
        ({"top_k": 20, "top_p": 0.5}, None),
    ],
)
def test_truncation_draws_only_and_all_of_the_allowed(logits: np.ndarray, settings: dict, allowed):
    probabilities = np.exp(log_softmax(logits[:1]))[0]
    if allowed is None:  # top-p applies to the tokens that top-k keeps, renormalized
        order = np.argsort(-probabilities)[:20]
        mass = np.cumsum(probabilities[order] / probabilities[order].sum())
        expected = set(order[: 1 + int((mass < 0.5).sum())])
    else:
        expected = allowed(probabilities)
    draws = 4000
    out = run(np.repeat(logits[:1], draws, 0), inputs(draws, temperature=1.0, **settings))
    seen = set(np.asarray(out.token).tolist())
    assert seen <= {int(t) for t in expected}
    likely = {int(t) for t in expected if probabilities[t] / sum(probabilities[list(expected)]) > 0.005}
    assert likely <= seen


def test_draws_follow_the_distribution(logits: np.ndarray):
    draws, temperature = 20_000, 1.7
    out = run(np.repeat(logits[:1], draws, 0), inputs(draws, temperature=temperature))
    counts = np.bincount(np.asarray(out.token), minlength=VOCAB)
    expected = np.exp(log_softmax(logits[:1] / temperature))[0] * draws
    often = expected > 5
    chi_square = (((counts - expected) ** 2) / expected)[often].sum()
    assert chi_square < often.sum() + 5 * np.sqrt(2 * often.sum())


def test_a_draw_depends_on_seed_and_index_alone(logits: np.ndarray):
    alone = run(logits[:1], inputs(1, temperature=1.0, output_index=3))
    among = run(
        logits,
        inputs(
            4,
            temperature=[1.0, 0.0, 2.0, 1.0],
            output_index=3,
            top_k=[0, 3, 0, 2],
            wants_top=True,
            use_history=[False, True, False, True],
        ),
    )
    assert alone.token[0] == among.token[0]
    later = [int(run(logits[:1], inputs(1, temperature=3.0, output_index=i)).token[0]) for i in range(12)]
    assert len(set(later)) > 3


def test_penalties_bias_and_bans(logits: np.ndarray):
    history = np.zeros((4, VOCAB), np.int32)
    history[0, 3] = 2  # generated twice
    history[0, 5] = PROMPT_BIT
    history[1, :] = STOP_BIT * (np.arange(VOCAB) == logits[1].argmax())
    bias = np.zeros((4, VOCAB), np.float32)
    bias[2, 11] = 100.0
    logits = logits.copy()
    logits[0] = -5.0
    logits[0, [3, 5, 7]] = [6.0, 4.0, 3.9]

    def greedy(**settings: object) -> list[int]:
        return run(logits, inputs(4, use_history=True, **settings), history, bias).token.tolist()

    plain = greedy()
    assert plain[0] == 3 and plain[1] == logits[1].argmax() and plain[2] == 11
    assert greedy(frequency=1.1)[0] == 5  # 6 - 2.2 < 4
    assert greedy(presence=1.9)[0] == 3 and greedy(presence=2.1)[0] == 5  # subtracted once, not per occurrence
    assert greedy(repetition=2.0)[0] == 7  # 6/2 and 4/2 fall below 3.9, for a prompt and an output token alike
    assert greedy(ban_stops=True)[1] == np.argsort(-logits[1])[1]
    without = run(logits, inputs(4, use_history=False, frequency=1.1, ban_stops=True), history, bias)
    assert without.token.tolist() == logits.argmax(-1).tolist()


def test_reported_logprobs_are_raw(logits: np.ndarray):
    bias = np.zeros((4, VOCAB), np.float32)
    bias[:, 2] = 100.0
    out = run(logits, inputs(4, use_history=True, temperature=0.5), None, bias)
    assert out.token.tolist() == [2] * 4
    np.testing.assert_allclose(out.logprob, log_softmax(logits)[:, 2], atol=1e-5)
