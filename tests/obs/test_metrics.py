from __future__ import annotations

import re
import threading

import pytest
from prometheus_client.parser import text_string_to_metric_families

from ryzjax.obs.histogram import Histogram
from ryzjax.obs.metrics import OTHER_ADAPTERS, EngineMetrics, RequestStats

NAMES = [
    "num_requests_running",
    "num_requests_waiting",
    "kv_cache_usage_perc",
    "num_preemptions_total",
    "prompt_tokens_total",
    "generation_tokens_total",
    "request_success_total",
    "iteration_tokens_total_bucket",
    "time_to_first_token_seconds_sum",
    "inter_token_latency_seconds_count",
    "request_time_per_output_token_seconds_count",
    "e2e_request_latency_seconds_count",
    "request_queue_time_seconds_count",
    "request_prefill_time_seconds_count",
    "request_decode_time_seconds_count",
    "request_prompt_tokens_count",
    "request_generation_tokens_count",
    "cache_config_info",
    "engine_healthy",
    "recompiles_total",
    "padding_waste_ratio",
]


def samples(metrics: EngineMetrics) -> dict[tuple[str, str], float]:
    """Returns the value of each sample, by its name and its label other than the model ("" if it has none)."""
    body, _ = metrics.render()
    found = {}
    for family in text_string_to_metric_families(body.decode()):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k != "model_name"}
            found[sample.name, ",".join(labels.values())] = sample.value
    return found


def finished(**changes: object) -> RequestStats:
    values: dict[str, object] = {
        "prompt_tokens": 7,
        "generation_tokens": 5,
        "finish_reason": "length",
        "arrival_s": 10.0,
        "first_scheduled_s": 10.5,
        "first_token_s": 11.0,
        "finished_s": 13.0,
    }
    return RequestStats(**(values | changes))  # type: ignore[arg-type]


def test_every_name_is_there_with_the_model_label() -> None:
    metrics = EngineMetrics(model_name="m")
    metrics.set_cache_config({"page_size_tokens": 16, "pages": 100})
    body, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    for name in NAMES:
        assert re.search(rf'^ryzjax:{name}{{[^}}]*model_name="m"', body.decode(), re.MULTILINE), name
    assert samples(metrics)["ryzjax:cache_config_info", "16,100"] == 1.0


def test_step() -> None:
    metrics = EngineMetrics()
    metrics.step_done(12, 16, 3, 2, 0.25)
    found = samples(metrics)
    assert found["ryzjax:num_requests_running", ""] == 3
    assert found["ryzjax:num_requests_waiting", ""] == 2
    assert found["ryzjax:kv_cache_usage_perc", ""] == 0.25
    assert found["ryzjax:padding_waste_ratio", ""] == pytest.approx(0.25)
    assert found["ryzjax:iteration_tokens_total_bucket", "8.0"] == 0
    assert found["ryzjax:iteration_tokens_total_bucket", "16.0"] == 1
    for _ in range(2000):
        metrics.step_done(16, 16, 0, 0, 0.0)
    assert samples(metrics)["ryzjax:padding_waste_ratio", ""] < 1e-6


def test_request_times() -> None:
    metrics = EngineMetrics()
    metrics.first_token(1.0)
    metrics.inter_token(0.5, 4)
    metrics.request_done(finished())
    found = samples(metrics)
    assert found["ryzjax:request_success_total", "length"] == 1
    assert found["ryzjax:request_success_total", "stop"] == 0
    assert found["ryzjax:prompt_tokens_total", ""] == 7
    assert found["ryzjax:generation_tokens_total", ""] == 5
    assert found["ryzjax:time_to_first_token_seconds_sum", ""] == 1.0
    assert found["ryzjax:inter_token_latency_seconds_count", ""] == 4
    assert found["ryzjax:inter_token_latency_seconds_sum", ""] == 2.0
    assert found["ryzjax:e2e_request_latency_seconds_sum", ""] == 3.0
    assert found["ryzjax:request_queue_time_seconds_sum", ""] == 0.5
    assert found["ryzjax:request_prefill_time_seconds_sum", ""] == 0.5
    assert found["ryzjax:request_decode_time_seconds_sum", ""] == 2.0
    assert found["ryzjax:request_time_per_output_token_seconds_sum", ""] == 0.5


def test_an_abort_in_the_queue_has_no_prefill_or_decode() -> None:
    metrics = EngineMetrics()
    metrics.request_done(
        finished(finish_reason="abort", generation_tokens=0, first_scheduled_s=None, first_token_s=None)
    )
    found = samples(metrics)
    assert found["ryzjax:request_success_total", "abort"] == 1
    assert found["ryzjax:request_queue_time_seconds_count", ""] == 0
    assert found["ryzjax:request_decode_time_seconds_count", ""] == 0


def test_counts_and_gauges_set_apart() -> None:
    metrics = EngineMetrics()
    other = EngineMetrics()
    metrics.preempted(2)
    metrics.recompiled()
    metrics.set_healthy(True)
    metrics.set_load(1, 4, 0.5)
    found = samples(metrics)
    assert found["ryzjax:num_preemptions_total", ""] == 2
    assert found["ryzjax:recompiles_total", ""] == 1
    assert found["ryzjax:engine_healthy", ""] == 1
    assert found["ryzjax:num_requests_waiting", ""] == 4
    assert samples(other)["ryzjax:num_preemptions_total", ""] == 0, "no global state"


def test_scrapes_while_the_engine_counts_lose_nothing() -> None:
    metrics = EngineMetrics()

    def count() -> None:
        for _ in range(2000):
            metrics.inter_token(0.01, 2)

    threads = [threading.Thread(target=count) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        metrics.render()
    for thread in threads:
        thread.join()
    assert samples(metrics)["ryzjax:generation_tokens_total", ""] == 12_000


def test_histogram_bounds_are_inclusive_and_checked() -> None:
    histogram = Histogram([1, 2])
    for value in (0.5, 1, 1.5, 2, 3):
        histogram.observe(value)
    assert histogram.cumulative() == [("1.0", 2.0), ("2.0", 4.0), ("+Inf", 5.0)]
    assert histogram.sum == 8.0
    with pytest.raises(ValueError, match="strictly rising"):
        Histogram([2, 1])


def test_adapters_are_counted_under_a_bounded_number_of_names() -> None:
    metrics = EngineMetrics()
    for i in range(100):
        metrics.request_done(finished(adapter=f"adapter-{i}"))
    metrics.request_done(finished(adapter="adapter-0"))
    metrics.request_done(finished())
    metrics.adapter_registered(0.25, 3)
    metrics.adapter_written(0.002)
    metrics.set_loaded_adapters(2)
    found = samples(metrics)
    by_name = {label: value for (name, label), value in found.items() if name == "ryzjax:lora_requests_total"}
    assert len(by_name) == 65
    assert (by_name["adapter-0"], by_name["adapter-63"], by_name[OTHER_ADAPTERS]) == (2, 1, 36)
    assert found["ryzjax:lora_loads_total", ""] == 1
    assert (found["ryzjax:loras_registered", ""], found["ryzjax:loras_loaded", ""]) == (3, 2)
    assert found["ryzjax:lora_load_seconds_sum", ""] == 0.25
