"""Writes result files: the figures of a benchmark with the hardware, versions, commit and command behind them."""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def write_result(name: str, figures: dict[str, object]) -> Path:
    """Writes bench/results/NAME.json and returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(provenance() | figures, indent=1) + "\n")
    return path


def provenance() -> dict[str, Any]:
    """Returns the date, hardware, versions, commit and command of this process."""
    return {
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "command": shlex.join(["python", *map(_without_home, sys.argv)]),
        "commit": _git("rev-parse", "--short", "HEAD") + ("+changes" if _git("status", "--porcelain", "-uno") else ""),
        "hardware": {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        },
        "versions": {"python": platform.python_version()} | {p: v for p in _PACKAGES if (v := _version(p))},
    }


def _without_home(word: str) -> str:
    """Returns a word of the command line. Of paths that name this machine's folders, only the file name is kept."""
    path = Path(word)
    return path.name if path.is_absolute() or ".." in path.parts else word


_PACKAGES = ("jax", "jaxlib", "flax", "torch", "transformers")


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()


def _cpu_model() -> str:
    """Returns the CPU's name. Clouds shorten it, so family and model, which tell generations apart, follow."""
    info = Path("/proc/cpuinfo")
    if not info.is_file():
        return platform.processor() or platform.machine()
    fields = dict(line.replace("\t", "").split(": ", 1) for line in info.read_text().splitlines() if ": " in line)
    if "cpu family" not in fields:
        return fields.get("model name", platform.machine())
    return f"{fields.get('model name', '')} (family {fields['cpu family']}, model {fields.get('model', '?')})"
