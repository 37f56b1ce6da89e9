"""Computes what tasks need from a model: log-likelihoods of continuations, and completions, batched on an engine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError, ContextLengthError
from ryzjax.evaluation.batches import run_batched
from ryzjax.serving.frontend.llm import LLM
from ryzjax.serving.messages.request import TokenLogprobs
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = [
    "Completion",
    "Continuation",
    "ContinuationScore",
    "EncodedPair",
    "complete",
    "encode_pair",
    "fit_pair",
    "score",
]

# The one alternative is the most likely token, which `is_greedy` needs.
_SCORE_ONLY = SamplingParams(max_tokens=0, prompt_logprobs=1)


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """A text to score, and the context that precedes it."""

    context: str
    continuation: str


@dataclass(frozen=True, kw_only=True)
class ContinuationScore:
    """The score of a continuation.

    Attributes:
      logprob: The sum of the log-probabilities of its tokens, in nats.
      is_greedy: Whether each of them is the most likely token. Ties count.
      num_tokens: The number of tokens of the continuation.
      is_cut: Whether the context was cut on the left to fit.
    """

    logprob: float
    is_greedy: bool
    num_tokens: int
    is_cut: bool


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A completion.

    Attributes:
      text: The generated text.
      is_cut: Whether the prompt was cut on the left to fit.
    """

    text: str
    is_cut: bool


@dataclass(frozen=True, kw_only=True)
class EncodedPair:
    """A tokenized pair.

    Attributes:
      context, continuation: The token ids of both parts.
      is_cut: Whether the context was cut on the left to fit.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]
    is_cut: bool = False


def encode_pair(tokenizer: Tokenizer, pair: Continuation, *, add_special_tokens: bool = True) -> EncodedPair:
    """Tokenizes a pair as lm-evaluation-harness does.

    White space at the end of the context moves to the continuation. Both are tokenized as one text. If the context
    alone has n tokens, the continuation is everything after the first n tokens of that text. An empty context becomes
    BOS, or EOS if the tokenizer has no BOS.

    Args:
      tokenizer: The tokenizer.
      pair: The pair.
      add_special_tokens: Whether the tokenizer adds its special tokens, such as BOS.

    Raises:
      ConfigError: The context is empty, and the tokenizer has neither BOS nor EOS.
    """
    stripped = pair.context.rstrip()
    if not pair.context:
        following = tokenizer.encode(pair.continuation, add_special_tokens=False)
        prefix = _prefix(tokenizer)
        if following[:1] == [prefix]:
            following = following[1:]
        return EncodedPair(context=(prefix,), continuation=tuple(following))
    whole = tokenizer.encode(
        stripped + pair.context[len(stripped) :] + pair.continuation, add_special_tokens=add_special_tokens
    )
    context = tokenizer.encode(stripped, add_special_tokens=add_special_tokens)
    following = whole[len(context) :]
    # A context of white space may have no tokens, but at least one must precede the first scored token.
    return EncodedPair(context=tuple(context) or (_prefix(tokenizer),), continuation=tuple(following))


def fit_pair(pair: EncodedPair, max_tokens: int) -> EncodedPair:
    """Cuts the context on the left, so that the pair has at most `max_tokens` tokens.

    Raises:
      ContextLengthError: No token of the context would remain.
    """
    surplus = len(pair.context) + len(pair.continuation) - max_tokens
    if surplus <= 0:
        return pair
    if surplus >= len(pair.context):
        raise ContextLengthError(
            f"a continuation has {len(pair.continuation)} tokens; at most {max_tokens - 1} fit a context of "
            f"{max_tokens} after one token; raise max_context_tokens, or leave the item out",
            param="continuation",
        )
    return EncodedPair(context=pair.context[surplus:], continuation=pair.continuation, is_cut=True)


def score(
    llm: LLM,
    pairs: Sequence[Continuation],
    *,
    title: str,
    max_tokens: int | None = None,
    add_special_tokens: bool = True,
    adapter: str | None = None,
    show_progress: bool = False,
) -> list[ContinuationScore]:
    """Scores continuations, and returns the scores in the order of `pairs`.

    Args:
      llm: The engine.
      pairs: The contexts and continuations.
      title: The label of the progress bar.
      max_tokens: The largest number of tokens of a context and its continuation. The default is the engine's context.
      add_special_tokens: Whether the tokenizer adds its special tokens, such as BOS.
      adapter: The name of a loaded adapter to score with; None for the model alone.
      show_progress: Whether to show a progress bar on stderr.

    Raises:
      ConfigError: `max_tokens` is more than the engine's context.
      ContextLengthError: A continuation alone fills `max_tokens`.
    """
    longest = _checked_length(llm, max_tokens)
    tokenizer = llm.engine.tokenizer
    encoded = [fit_pair(encode_pair(tokenizer, pair, add_special_tokens=add_special_tokens), longest) for pair in pairs]
    prompts = [(*pair.context, *pair.continuation) for pair in encoded]
    scores: dict[int, ContinuationScore] = {}
    for i, output in run_batched(llm, prompts, _SCORE_ONLY, title=title, adapter=adapter, show_progress=show_progress):
        pair = encoded[i]
        entries = [entry for entry in (output.prompt_logprobs or [])[len(pair.context) :] if entry is not None]
        scores[i] = ContinuationScore(
            logprob=sum(entry.logprob for entry in entries),
            is_greedy=all(map(_is_likeliest, entries)),
            num_tokens=len(pair.continuation),
            is_cut=pair.is_cut,
        )
    return [scores[i] for i in range(len(pairs))]


def complete(
    llm: LLM,
    prompts: Sequence[Sequence[int]],
    *,
    stop: Sequence[str],
    max_new_tokens: int,
    title: str,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    adapter: str | None = None,
    show_progress: bool = False,
) -> list[Completion]:
    """Generates completions, and returns them in the order of `prompts`.

    Args:
      llm: The engine.
      prompts: The token ids of each prompt. A prompt is cut on the left if a completion would not fit after it.
      stop: The strings that end a completion.
      max_new_tokens: The largest number of tokens of a completion.
      title: The label of the progress bar.
      max_tokens: The largest number of tokens of a prompt and its completion. The default is the engine's context.
      temperature: The temperature of the sampling; 0 is greedy.
      top_p: The total probability of the most likely tokens that are sampled from.
      seed: The seed of the sampling. Each prompt has its own random stream, so that errors of different prompts are
        independent.
      adapter: The name of a loaded adapter to generate with; None for the model alone.
      show_progress: Whether to show a progress bar on stderr.

    Raises:
      ConfigError: `max_tokens` is more than the engine's context, or leaves no room for a prompt.
    """
    longest = _checked_length(llm, max_tokens)
    room = longest - max_new_tokens
    if room < 1:
        raise ConfigError(
            f"a completion of {max_new_tokens} tokens leaves no room for a prompt in a context of {longest}; lower "
            "max_new_tokens, or raise max_context_tokens"
        )
    shared = SamplingParams(temperature=temperature, top_p=top_p, max_tokens=max_new_tokens, stop=tuple(stop))
    params = [replace(shared, seed=seed * len(prompts) + i) for i in range(len(prompts))]
    found: dict[int, Completion] = {}
    fitted = [prompt[-room:] for prompt in prompts]
    for i, output in run_batched(llm, fitted, params, title=title, adapter=adapter, show_progress=show_progress):
        found[i] = Completion(text=output.outputs[0].text, is_cut=len(prompts[i]) > room)
    return [found[i] for i in range(len(prompts))]


def _is_likeliest(entry: TokenLogprobs) -> bool:
    return entry.logprob >= entry.top[0][1]


def _checked_length(llm: LLM, max_tokens: int | None) -> int:
    longest = llm.engine.max_context_tokens
    if max_tokens is not None and not 2 <= max_tokens <= longest:
        raise ConfigError(f"max_tokens={max_tokens} is out of range; expected 2 to {longest}, the engine's context")
    return longest if max_tokens is None else max_tokens


def _prefix(tokenizer: Tokenizer) -> int:
    if tokenizer.bos_token_id is not None:
        return tokenizer.bos_token_id
    if not tokenizer.eos_token_ids:
        raise ConfigError("a context is empty and the tokenizer has neither BOS nor EOS to start with; give it one")
    return tokenizer.eos_token_ids[0]
