"""The result of a load test as JSON, in the schema of `vllm bench serve`, and as a table."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.table import Table

from ryzjax.bench.client import RequestTimes

__all__ = ["provenance", "serve_report", "serve_table"]


def serve_report(
    times: Sequence[RequestTimes],
    *,
    duration_s: float,
    model: str,
    request_rate: float,
    max_concurrency: int | None,
    goodput_ms: Mapping[str, float],
) -> dict[str, object]:
    """Returns the throughput and the latencies of a run.

    Args:
      times: The measurements of each request. Failed requests count only as `failed`.
      duration_s: The time from the start of the first request to the end of the last one, in seconds.
      model: The name of the model.
      request_rate: The requested rate, in requests per second; infinite if there was no limit.
      max_concurrency: The limit on requests in flight; None if there was none.
      goodput_ms: Limits on "ttft", "tpot" or "e2el" in milliseconds. `request_goodput` counts the requests that meet
        all of them.
    """
    done = [t for t in times if t.error is None]
    tpot = {id(t): (t.e2el_s - t.ttft_s) / (t.output_tokens - 1) * 1e3 for t in done if t.output_tokens > 1}
    latencies = {
        "ttft": [t.ttft_s * 1e3 for t in done],
        "tpot": list(tpot.values()),
        "itl": [gap * 1e3 for t in done for gap in t.itl_s],
        "e2el": [t.e2el_s * 1e3 for t in done],
    }

    def is_good(t: RequestTimes) -> bool:
        values = {"ttft": t.ttft_s * 1e3, "e2el": t.e2el_s * 1e3, "tpot": tpot.get(id(t), 0.0)}
        return all(values[name] <= limit for name, limit in goodput_ms.items())

    inputs, outputs = sum(t.prompt_tokens for t in done), sum(t.output_tokens for t in done)
    report: dict[str, object] = {
        "date": time.strftime("%Y%m%d-%H%M%S"),
        "backend": "openai",
        "model_id": model,
        "tokenizer_id": model,
        "num_prompts": len(times),
        "request_rate": request_rate if np.isfinite(request_rate) else "inf",
        "max_concurrency": max_concurrency,
        "duration": duration_s,
        "completed": len(done),
        "failed": len(times) - len(done),
        "total_input_tokens": inputs,
        "total_output_tokens": outputs,
        "request_throughput": len(done) / duration_s,
        "request_goodput": sum(map(is_good, done)) / duration_s if goodput_ms else None,
        "output_throughput": outputs / duration_s,
        "total_token_throughput": (inputs + outputs) / duration_s,
    }
    for name, values in latencies.items():
        report |= _statistics(name, values)
    report["errors"] = sorted({t.error for t in times if t.error is not None})[:10]
    return report


def _statistics(name: str, values: Sequence[float]) -> dict[str, object]:
    array = np.asarray(values) if values else np.zeros(1)
    return {
        f"mean_{name}_ms": float(array.mean()),
        f"median_{name}_ms": float(np.median(array)),
        f"std_{name}_ms": float(array.std()),
        f"p99_{name}_ms": float(np.percentile(array, 99)),
    }


def serve_table(report: Mapping[str, object]) -> Table:
    """Returns the report as a table for the terminal."""
    table = Table(title=f"{report['model_id']}: {report['completed']} of {report['num_prompts']} requests done")
    for column in ("", "mean", "median", "p99"):
        table.add_column(column, justify="left" if not column else "right")
    for name, label in (("ttft", "time to first token, ms"), ("tpot", "time per output token after it, ms")):
        table.add_row(label, *(f"{report[f'{s}_{name}_ms']:.1f}" for s in ("mean", "median", "p99")))
    for name, label in (("itl", "between tokens, ms"), ("e2el", "whole request, ms")):
        table.add_row(label, *(f"{report[f'{s}_{name}_ms']:.1f}" for s in ("mean", "median", "p99")))
    table.add_section()
    for key in ("request_throughput", "output_throughput", "total_token_throughput"):
        table.add_row(key.replace("_", " ") + " / s", f"{report[key]:.2f}", "", "")
    table.add_row("failed", str(report["failed"]), "", "")
    return table


def provenance() -> dict[str, object]:
    """Returns the hardware, the commit and the command, for a result file."""
    git = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=Path(__file__).parent
    )
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        cpu = names[0] if names else cpu
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "hardware": {"cpu": cpu, "cores": os.cpu_count(), "memory_gib": round(memory, 1)},
        "commit": git.stdout.strip() or None,
        "command": shlex.join(["ryzjax", *sys.argv[1:]]),
    }
