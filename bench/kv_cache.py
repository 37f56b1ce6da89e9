"""Measures decode steps with KV caches in bfloat16, int8 and fp8.

    python bench/kv_cache.py [--shape qwen2.5-0.5b] [--contexts 1024 16384] [--batches 1 8] [--steps 40]

There is one engine for each dtype, and the engines take turns step by step. The bytes that a token takes in each cache
are printed first, then each case as a line of JSON: the median milliseconds of a step, and the median ratio to the
bfloat16 step of the same turn. Contexts above 2048 tokens run only with a batch of 1. The figures go to
bench/results/kv_cache.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

from record import write_result
from shapes import SHAPES, checkpoint

from ryzjax import LLM, SamplingParams
from ryzjax.serving.engine.engine import Engine
from ryzjax.serving.messages.request import EngineRequest

OPTIONS = {"bfloat16": {}, "int8": {"kv_dtype": "int8"}, "fp8_e4m3": {"kv_dtype": "fp8_e4m3", "kv_scale_unit": True}}


def launch(model: Path, longest: int, batch: int, options: dict[str, object]) -> LLM:
    """Returns an engine whose thread is stopped, so that the caller runs its steps.

    The result of each step is read before the next step starts.
    """
    llm = LLM(
        str(model),
        dtype="bfloat16",
        max_sequences=batch,
        max_batch_tokens=512,
        max_context_tokens=longest,
        kv_memory="512MiB",
        overlap=False,
        **options,  # type: ignore[arg-type]
    )
    llm.close()
    return llm


def fill(engine: Engine, batch: int, context: int, new_tokens: int) -> None:
    """Adds `batch` sequences with prompts of `context` tokens, and runs steps until all of them decode."""
    for i in range(batch):
        engine.add(
            EngineRequest(
                request_id=f"{context}-{i}",
                prompt_token_ids=tuple((i * 7919 + j * 104_729) % 250 + 3 for j in range(context)),
                params=SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True),
                stop_token_ids=frozenset(),
                max_new_tokens=new_tokens,
                seed=0,
                arrival_s=time.monotonic(),
            )
        )
    while len(engine.step()) < batch:
        pass


def measure(engines: dict[str, Engine], batch: int, context: int, steps: int) -> dict[str, object]:
    """Returns, for each dtype, the median of `steps` decode steps in milliseconds, and of their ratios to bfloat16."""
    for engine in engines.values():
        fill(engine, batch, context, steps + 32)
    seconds: dict[str, list[float]] = {name: [] for name in engines}
    for step in range(steps + 4):
        for name, engine in engines.items():
            started = time.perf_counter()
            engine.step()
            if step >= 4:
                seconds[name].append(time.perf_counter() - started)
    for engine in engines.values():
        while engine.has_work:
            engine.step()
    figures: dict[str, object] = {"batch": batch, "context": context}
    for name, taken in seconds.items():
        ratio = statistics.median(other / own for other, own in zip(taken, seconds["bfloat16"], strict=True))
        figures[name] = {"ms": round(statistics.median(taken) * 1e3, 2), "to_bfloat16": round(ratio, 3)}
    return figures


def main() -> None:
    """Measures every case, prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-0.5b")
    parser.add_argument("--contexts", type=int, nargs="+", default=[1024, 16384], help="prompt lengths in tokens")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="sequences that decode together")
    parser.add_argument("--steps", type=int, default=40, help="decode steps of each case (default %(default)s)")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "ryzjax-bench")
    options = parser.parse_args()

    model = checkpoint(options.shape, options.folder)
    longest = max(options.contexts) + options.steps + 64
    llms = {name: launch(model, longest, max(options.batches), extra) for name, extra in OPTIONS.items()}
    engines = {name: llm.engine.core for name, llm in llms.items()}
    token_bytes = {
        name: sum(a.nbytes for a in engine.runner.cache if a is not None and a.ndim > 2)
        / (engine.runner.cache.k.shape[1] * engine.runner.page_size_tokens)
        for name, engine in engines.items()
    }
    print(json.dumps({"bytes a token": token_bytes}))
    cases = []
    for context in options.contexts:
        for batch in options.batches:
            # A larger batch with a long context shows nothing new and takes minutes to prefill.
            if batch == 1 or context <= 2048:
                cases.append(measure(engines, batch, context, options.steps))
                print(json.dumps(cases[-1]), flush=True)
    saved = {name: round(100 * (1 - size / token_bytes["bfloat16"]), 1) for name, size in token_bytes.items()}
    figures = {"shape": options.shape, "bytes_a_token": token_bytes, "saved_percent": saved, "cases": cases}
    print(write_result("kv_cache", figures))


if __name__ == "__main__":
    main()
