"""Measures the host's part of a decode step: schedule, pack and commit.

    python bench/host.py

32 sequences decode at a context of about 1K tokens. No model runs. Each part and the whole are printed with their
median and 99th percentile in microseconds, over 400 steps. The figures go to bench/results/host.json.
"""

from __future__ import annotations

import statistics
import time

from record import write_result

from ryzjax.serving.host.packing import StepPacker
from ryzjax.serving.host.pages import PagePool
from ryzjax.serving.host.scheduler import Scheduler
from ryzjax.serving.messages.request import EngineRequest
from ryzjax.serving.messages.sampling_params import SamplingParams

ROWS, CONTEXT, PAGE, STEPS = 32, 1024, 64, 400


def main() -> None:
    """Measures every part, prints the figures and writes them."""
    most = CONTEXT + STEPS + 64
    scheduler = Scheduler(
        pool=PagePool(num_pages=ROWS * (most // PAGE + 2), page_size_tokens=PAGE),
        max_sequences=ROWS,
        max_batch_tokens=2048,
        max_context_tokens=most,
        max_queue=ROWS,
    )
    packer = StepPacker(max_sequences=ROWS, max_pages=most // PAGE + 1)
    for i in range(ROWS):
        scheduler.add(
            EngineRequest(
                request_id=str(i),
                prompt_token_ids=tuple(range(CONTEXT)),
                params=SamplingParams(temperature=0.7),
                stop_token_ids=frozenset({2}),
                max_new_tokens=STEPS + 32,
                seed=i,
                arrival_s=0.0,
            )
        )
    parts: dict[str, list[float]] = {"schedule": [], "pack": [], "commit": [], "all": []}
    while len(parts["all"]) < STEPS:
        times = [time.perf_counter()]
        plan = scheduler.schedule()
        times.append(time.perf_counter())
        assert plan is not None
        packer.pack(plan, 32 if plan.num_tokens <= 32 else 2048)
        times.append(time.perf_counter())
        scheduler.commit(plan, [7] * plan.num_samples)
        times.append(time.perf_counter())
        if plan.num_decode_rows == ROWS:
            for name, begin, end in zip(("schedule", "pack", "commit"), times, times[1:], strict=False):
                parts[name].append((end - begin) * 1e6)
            parts["all"].append((times[-1] - times[0]) * 1e6)
    figures = {
        name: {"median_us": statistics.median(us), "p99_us": statistics.quantiles(us, n=100)[98]}
        for name, us in parts.items()
    }
    for name, figure in figures.items():
        print(f"{name:<10}{figure['median_us']:>8.0f} us median{figure['p99_us']:>8.0f} us p99")
    print(write_result("host", {"rows": ROWS, "context": CONTEXT, "figures": figures}))


if __name__ == "__main__":
    main()
