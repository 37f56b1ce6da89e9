"""Measures the time from starting `ryzjax serve MODEL` to its first token, with a cold and a warm compile cache.

    python bench/startup.py MODEL [--starts 3]

It prints the seconds of each phase: once with an empty cache, and the medians of the starts with a warm one. The
figures go to bench/results/startup.json.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

from record import write_result


def start(model: str, cache: str) -> dict[str, float]:
    """Starts a server, asks it for one token, stops it, and returns the seconds of each phase."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "ryzjax.cli.main", "serve", model, "--port", "0", "--compile-cache", cache]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    phases: dict[str, float] = {}
    for line in process.stderr:
        if phase := re.search(r"phase (\S+) ([\d.]+)", line):
            phases[phase[1]] = float(phase[2])
        if address := re.search(r"serving (\S+) on (http://\S+)", line):
            body = {"model": address[1], "prompt": "a", "max_tokens": 1, "temperature": 0}
            request = urllib.request.Request(
                f"{address[2]}/v1/completions", json.dumps(body).encode(), {"content-type": "application/json"}
            )
            urllib.request.urlopen(request).read()
            phases["to first token"] = time.perf_counter() - started
            break
    process.send_signal(signal.SIGTERM)
    process.communicate()
    return phases


def main() -> None:
    """Measures one cold start and several warm ones, prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or repository of the model")
    parser.add_argument("--starts", type=int, default=3, help="warm starts to measure (default %(default)s)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        cold = start(arguments.model, cache)
        warm = [start(arguments.model, cache) for _ in range(arguments.starts)]
    medians = {phase: statistics.median(phases[phase] for phases in warm) for phase in cold}
    print(f"{'phase':<16}{'cold s':>9}{'warm s':>9}")
    for phase in cold:
        print(f"{phase:<16}{cold[phase]:>9.2f}{medians[phase]:>9.2f}")
    print(write_result("startup", {"cold_s": cold, "warm_median_s": medians, "warm_s": warm}))


if __name__ == "__main__":
    main()
