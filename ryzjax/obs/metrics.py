"""EngineMetrics: the engine's metrics for Prometheus, under names that dashboards know from vLLM.

The engine thread calls methods that add to plain numbers under one uncontended lock, which takes well under 20 us a
step. A scrape builds the metric families from these numbers.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from ryzjax.obs.histogram import Histogram

__all__ = ["OTHER_ADAPTERS", "PREFIX", "EngineMetrics", "RequestStats"]

PREFIX = "ryzjax:"

FinishReason = Literal["stop", "length", "abort", "error"]
_FINISH_REASONS: tuple[FinishReason, ...] = ("stop", "length", "abort", "error")
# The decay of the padding ratio's sums at each step, so that it covers about the last hundred steps.
_PADDING_DECAY = 0.01

_TOKENS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000, 200_000)
_STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16_384)
_FIRST_TOKEN_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_PER_TOKEN_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0)
_REQUEST_S = (0.01, 0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 60, 120, 480, 1920)

# name -> (help, bucket bounds)
_HISTOGRAMS: dict[str, tuple[str, tuple[float, ...]]] = {
    "iteration_tokens_total": ("Tokens (prompt and generated) run in one engine step.", _STEP_TOKENS),
    "time_to_first_token_seconds": ("From a request's arrival to its first token.", _FIRST_TOKEN_S),
    "inter_token_latency_seconds": ("Between one token of a sequence and the next.", _PER_TOKEN_S),
    "request_time_per_output_token_seconds": ("Mean time per token after the first, a request.", _PER_TOKEN_S),
    "e2e_request_latency_seconds": ("From a request's arrival to its end.", _REQUEST_S),
    "request_queue_time_seconds": ("From a request's arrival to its first step.", _REQUEST_S),
    "request_prefill_time_seconds": ("From a request's first step to its first token.", _REQUEST_S),
    "request_decode_time_seconds": ("From a request's first token to its end.", _REQUEST_S),
    "request_prompt_tokens": ("Prompt tokens of a finished request.", _TOKENS),
    "request_generation_tokens": ("Generated tokens of a finished request.", _TOKENS),
    "lora_load_seconds": ("From an adapter's files or arrays to being named by requests.", _REQUEST_S),
    "lora_write_seconds": ("For which the engine's thread starts writing an adapter into its slot.", _PER_TOKEN_S),
}

# Adapters can have any number of names. Those beyond this number are counted together as `OTHER_ADAPTERS`.
_MAX_ADAPTER_LABELS = 64
OTHER_ADAPTERS = "(others)"

_COUNTERS: dict[str, str] = {
    "num_preemptions": "Sequences that lost their pages and were recomputed later.",
    "prompt_tokens": "Prompt tokens of finished requests.",
    "generation_tokens": "Tokens generated.",
    "prompt_tokens_scored": "Prompt tokens whose log-probabilities were computed.",
    "embeddings": "Prompts that became a vector.",
    "lora_loads": "Adapters written into a slot of the device.",
    "recompiles": "Executables compiled after start-up; serving traffic should never add one.",
}

_GAUGES: dict[str, str] = {
    "num_requests_running": "Sequences being run.",
    "num_requests_waiting": "Sequences waiting for pages or a slot.",
    "kv_cache_usage_perc": "Share of KV pages in use; 1 is all.",
    "loras_loaded": "Slots of the device that hold an adapter.",
    "loras_registered": "Adapters that requests may name.",
    "engine_healthy": "1 while the engine thread is alive and has not failed.",
    "padding_waste_ratio": "Share of the rows of recent steps (about the last hundred) that were padding.",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class RequestStats:
    """The figures of one finished sequence. Times are `time.monotonic()` seconds, or None if it did not get so far.

    Attributes:
      prompt_tokens: the tokens of the prompt.
      generation_tokens: the generated tokens.
      finish_reason: "stop", "length", "abort" or "error".
      arrival_s: the time when the caller sent the request.
      first_scheduled_s: the time of its first step.
      first_token_s: the time of its first token.
      finished_s: the time of its end.
      adapter: the name of its adapter, or None.
    """

    prompt_tokens: int
    generation_tokens: int
    finish_reason: FinishReason
    arrival_s: float
    first_scheduled_s: float | None
    first_token_s: float | None
    finished_s: float
    adapter: str | None = None


class EngineMetrics(Collector):
    """The metrics of one engine, in their own registry.

    Args:
      model_name: the value of the `model_name` label of every metric.
    """

    def __init__(self, *, model_name: str = ""):
        self._model_name = model_name
        self._lock = threading.Lock()
        self._gauges = dict.fromkeys(_GAUGES, 0.0)
        self._counters = dict.fromkeys(_COUNTERS, 0.0)
        self._finished = dict.fromkeys(_FINISH_REASONS, 0.0)
        self._adapter_requests: dict[str, float] = {}
        self._histograms = {name: Histogram(bounds) for name, (_, bounds) in _HISTOGRAMS.items()}
        self._cache_config: dict[str, str] | None = None
        self._recent_tokens = 0.0
        self._recent_padded_tokens = 0.0
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def step_done(self, tokens: int, padded_tokens: int, running: int, waiting: int, kv_usage: float) -> None:
        """Records the end of an engine step.

        Args:
          tokens: the tokens of the step, prompt and generated.
          padded_tokens: the tokens of its bucket, at least `tokens`.
          running: the sequences running after it.
          waiting: the sequences waiting after it.
          kv_usage: the fraction of KV pages in use, 0 to 1.
        """
        with self._lock:
            self._histograms["iteration_tokens_total"].observe(tokens)
            self._recent_tokens += tokens - _PADDING_DECAY * self._recent_tokens
            self._recent_padded_tokens += padded_tokens - _PADDING_DECAY * self._recent_padded_tokens
            if self._recent_padded_tokens > 0:
                self._gauges["padding_waste_ratio"] = 1.0 - self._recent_tokens / self._recent_padded_tokens
            self._set_load(running, waiting, kv_usage)

    def set_load(self, running: int, waiting: int, kv_usage: float) -> None:
        """Sets the load gauges outside a step, when requests arrive or the engine becomes idle."""
        with self._lock:
            self._set_load(running, waiting, kv_usage)

    def _set_load(self, running: int, waiting: int, kv_usage: float) -> None:
        self._gauges["num_requests_running"] = running
        self._gauges["num_requests_waiting"] = waiting
        self._gauges["kv_cache_usage_perc"] = kv_usage

    def preempted(self, n: int = 1) -> None:
        """Records that `n` sequences were preempted."""
        with self._lock:
            self._counters["num_preemptions"] += n

    def first_token(self, seconds: float) -> None:
        """Records the first token of a sequence, `seconds` after its arrival, and counts it as generated."""
        with self._lock:
            self._histograms["time_to_first_token_seconds"].observe(seconds)
            self._counters["generation_tokens"] += 1

    def inter_token(self, seconds: float, n: int = 1) -> None:
        """Records `n` tokens, each `seconds` after the previous one of its sequence, and counts them as generated."""
        with self._lock:
            self._histograms["inter_token_latency_seconds"].observe(seconds, n)
            self._counters["generation_tokens"] += n

    def prompts_read(self, *, scored_tokens: int, embeddings: int) -> None:
        """Records the prompt tokens that a step scored and the embeddings that it finished."""
        with self._lock:
            self._counters["prompt_tokens_scored"] += scored_tokens
            self._counters["embeddings"] += embeddings

    def request_done(self, stats: RequestStats) -> None:
        """Records the end of a sequence and counts its prompt tokens. Its generated tokens were counted before."""
        with self._lock:
            histograms = self._histograms
            self._finished[stats.finish_reason] += 1
            if stats.adapter is not None:
                self._count_adapter(stats.adapter)
            self._counters["prompt_tokens"] += stats.prompt_tokens
            histograms["request_prompt_tokens"].observe(stats.prompt_tokens)
            histograms["request_generation_tokens"].observe(stats.generation_tokens)
            histograms["e2e_request_latency_seconds"].observe(stats.finished_s - stats.arrival_s)
            if stats.first_scheduled_s is None:
                return
            histograms["request_queue_time_seconds"].observe(stats.first_scheduled_s - stats.arrival_s)
            if stats.first_token_s is None:
                return
            histograms["request_prefill_time_seconds"].observe(stats.first_token_s - stats.first_scheduled_s)
            decode_s = stats.finished_s - stats.first_token_s
            histograms["request_decode_time_seconds"].observe(decode_s)
            if stats.generation_tokens > 1:
                per_token_s = decode_s / (stats.generation_tokens - 1)
                histograms["request_time_per_output_token_seconds"].observe(per_token_s)

    def _count_adapter(self, name: str) -> None:
        counts = self._adapter_requests
        label = name if name in counts or len(counts) < _MAX_ADAPTER_LABELS else OTHER_ADAPTERS
        counts[label] = counts.get(label, 0.0) + 1

    def adapter_registered(self, seconds: float, registered: int) -> None:
        """Records that an adapter was read and checked in `seconds`, and the number of registered adapters."""
        with self._lock:
            self._histograms["lora_load_seconds"].observe(seconds)
            self._gauges["loras_registered"] = registered

    def set_registered_adapters(self, registered: int) -> None:
        """Sets the number of registered adapters."""
        with self._lock:
            self._gauges["loras_registered"] = registered

    def adapter_written(self, seconds: float) -> None:
        """Records that the engine's thread took `seconds` to start writing an adapter into a slot."""
        with self._lock:
            self._counters["lora_loads"] += 1
            self._histograms["lora_write_seconds"].observe(seconds)

    def set_loaded_adapters(self, loaded: int) -> None:
        """Sets the number of device slots that hold an adapter."""
        with self._lock:
            self._gauges["loras_loaded"] = loaded

    def recompiled(self) -> None:
        """Records a compilation after start-up."""
        with self._lock:
            self._counters["recompiles"] += 1

    def set_healthy(self, healthy: bool) -> None:
        """Sets whether the engine is alive."""
        with self._lock:
            self._gauges["engine_healthy"] = float(healthy)

    def set_cache_config(self, config: Mapping[str, str | int | float]) -> None:
        """Publishes the KV pool's settings as the labels of `cache_config_info`."""
        with self._lock:
            self._cache_config = {name: str(value) for name, value in config.items()}

    def render(self) -> tuple[bytes, str]:
        """Returns the body and the content type of a scrape in Prometheus's text format."""
        return generate_latest(self._registry), CONTENT_TYPE_LATEST

    def collect(self) -> Iterator[Metric]:
        """Returns the metric families for the registry."""
        with self._lock:
            families = list(self._families())
        return iter(families)

    def _families(self) -> Iterator[Metric]:
        names, model = ["model_name"], [self._model_name]
        for name, documentation in _GAUGES.items():
            gauge = GaugeMetricFamily(PREFIX + name, documentation, labels=names)
            gauge.add_metric(model, self._gauges[name])
            yield gauge
        for name, documentation in _COUNTERS.items():
            counter = CounterMetricFamily(PREFIX + name, documentation, labels=names)
            counter.add_metric(model, self._counters[name])
            yield counter
        finished = CounterMetricFamily(
            PREFIX + "request_success", "Requests that ended, by reason.", labels=[*names, "finished_reason"]
        )
        for reason, count in self._finished.items():
            finished.add_metric([*model, reason], count)
        yield finished
        by_adapter = CounterMetricFamily(
            PREFIX + "lora_requests", "Requests that ended, by adapter.", labels=[*names, "lora_name"]
        )
        for adapter, count in self._adapter_requests.items():
            by_adapter.add_metric([*model, adapter], count)
        yield by_adapter
        for name, (documentation, _) in _HISTOGRAMS.items():
            values = self._histograms[name]
            histogram = HistogramMetricFamily(PREFIX + name, documentation, labels=names)
            histogram.add_metric(model, buckets=values.cumulative(), sum_value=values.sum)
            yield histogram
        if self._cache_config is not None:
            info = GaugeMetricFamily(
                PREFIX + "cache_config_info", "Settings of the KV pool.", labels=[*names, *self._cache_config]
            )
            info.add_metric([*model, *self._cache_config.values()], 1.0)
            yield info
