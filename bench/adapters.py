"""Measures the cost of many LoRA adapters in one batch, and the time to load one while eight streams run.

    python bench/adapters.py [--shape qwen2.5-0.5b] [--weights bf16] [--slots 16]

The first part measures the decode throughput of 16 sequences: the model alone in an engine without adapter slots, one
adapter in an engine with one slot, and the model alone, one adapter and 16 adapters in an engine with 16 slots. All
engines stay loaded and take turns. The second part replaces an adapter from its folder again and again, and asks it for
one token after each load. The same request without a load is the baseline. Weights and adapters are random.

It prints the throughput of each case, as tokens/s and relative to one adapter in one slot, then the load times in
milliseconds. The figures go to bench/results/adapters.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from record import write_result
from rich.console import Console
from rich.progress import track
from shapes import SHAPES

from ryzjax import LLM, SamplingParams
from ryzjax.checkpoint.peft.write import write_adapter
from ryzjax.errors import RyzJAXError
from ryzjax.lora import Adapter, LoraConfig, LoraWeights

SEQUENCES, STREAMS, PROMPT = 16, 8, 16


def main() -> None:
    """Measures throughput and loading, prints the figures and writes them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape", choices=sorted(SHAPES), default="qwen2.5-0.5b", help="shape of the model (default %(default)s)"
    )
    parser.add_argument(
        "--weights", choices=("bf16", "int8", "int4"), default="bf16", help="type of the weights (default %(default)s)"
    )
    parser.add_argument("--rank", type=int, default=8, help="rank of the adapters (default %(default)s)")
    parser.add_argument(
        "--slots", type=int, default=16, help="adapter slots of the largest engine (default %(default)s)"
    )
    parser.add_argument("--tokens", type=int, default=48, help="tokens per sequence and round (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds after a warm-up (default %(default)s)")
    parser.add_argument("--loads", type=int, default=40, help="adapter loads to measure (default %(default)s)")
    parser.add_argument("--compile-cache", default=None, help="folder of the compile cache, or off")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engines = {slots: _engine(arguments, folder, slots) for slots in (0, 1, arguments.slots)}
        try:
            throughput = _throughput(arguments, engines)
            swap = asyncio.run(_swap(arguments, engines[arguments.slots], folder))
        finally:
            for llm in engines.values():
                llm.close()
    for what, figures in throughput.items():
        print(f"{what:<34}{figures['tokens_per_s']:8.1f} tokens/s{figures['to_one_adapter']:8.3f} of one adapter")
    print(json.dumps(swap, indent=1))
    settings = {key: value for key, value in vars(arguments).items() if key != "compile_cache"}
    print(write_result("adapters", {"settings": settings, "throughput": throughput, "swap": swap}))


def _engine(arguments: argparse.Namespace, folder: Path, slots: int) -> LLM:
    (folder / "config.json").write_text(json.dumps(SHAPES[arguments.shape]))
    llm = LLM(
        str(folder / "config.json"),
        load_format="dummy",
        weights="auto" if arguments.weights == "bf16" else arguments.weights,
        max_sequences=SEQUENCES,
        max_batch_tokens=64,
        max_context_tokens=512,
        memory_fraction=0.9,
        max_loras=slots,
        max_lora_rank=arguments.rank,
        compile_cache=arguments.compile_cache,
    )
    for i in range(slots):
        llm.load_adapter(f"adapter-{i}", _adapter(llm, arguments.rank, seed=i))
    return llm


def _adapter(llm: LLM, rank: int, seed: int) -> Adapter:
    linears = llm.engine.runner.model.linears
    rng, config = np.random.default_rng(seed), LoraConfig(rank=rank)
    weights = {
        layer: LoraWeights(
            a=jnp.asarray(rng.standard_normal((rank, linears[layer][1]), np.float32) * 0.02),
            b=jnp.asarray(rng.standard_normal((linears[layer][0], rank), np.float32) * 0.02),
        )
        for layer in config.choose(linears)
    }
    return Adapter(config=config, weights=weights, base_model=None)


def _throughput(arguments: argparse.Namespace, engines: dict[int, LLM]) -> dict[str, dict[str, float]]:
    slots = arguments.slots
    many: list[str | None] = [f"adapter-{i % slots}" for i in range(SEQUENCES)]
    runs: dict[str, tuple[int, list[str | None]]] = {
        "model alone, no slots": (0, [None] * SEQUENCES),
        "one adapter, one slot": (1, ["adapter-0"] * SEQUENCES),
        f"model alone, {slots} slots": (slots, [None] * SEQUENCES),
        f"one adapter, {slots} slots": (slots, ["adapter-0"] * SEQUENCES),
        f"{slots} adapters, {slots} slots": (slots, many),
    }
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for round_number in track(range(arguments.rounds + 1), description="throughput", console=Console(stderr=True)):
        # The order is random in each round. In a fixed order, the last cases would always run on a hotter machine.
        order = random.Random(round_number).sample(list(runs), len(runs))
        for name in order:
            size, adapters = runs[name]
            took = _decode(engines[size], adapters, arguments.tokens)
            if round_number:  # the first round is a warm-up
                seconds[name].append(took)
    rates = {name: SEQUENCES * (arguments.tokens - 1) / statistics.median(times) for name, times in seconds.items()}
    return {
        name: {"tokens_per_s": rate, "to_one_adapter": rate / rates["one adapter, one slot"]}
        for name, rate in rates.items()
    }


def _decode(llm: LLM, adapters: Sequence[str | None], tokens: int) -> float:
    """Returns the seconds from the moment when every sequence has a token to the last token of all.

    All sequences decode during this time.
    """

    async def run() -> float:
        first: list[float] = []
        params = SamplingParams(temperature=0, max_tokens=tokens, ignore_eos=True)

        async def one(i: int, adapter: str | None) -> None:
            started = False
            async for _ in llm.engine.stream(list(range(i + 3, i + 3 + PROMPT)), params, adapter=adapter):
                if not started:
                    first.append(time.perf_counter())
                    started = True

        await asyncio.gather(*(one(i, adapter) for i, adapter in enumerate(adapters)))
        return time.perf_counter() - max(first)

    return asyncio.run(run())


async def _swap(arguments: argparse.Namespace, llm: LLM, folder: Path) -> dict[str, object]:
    versions = [folder / f"version-{i}" for i in range(2)]
    for i, version in enumerate(versions):
        adapter = _adapter(llm, arguments.rank, seed=100 + i)
        write_adapter(version, adapter, llm.engine.runner.model, base_model="random")
    failed, finished, running = 0, 0, True

    async def stream(i: int) -> None:
        nonlocal failed, finished
        while running:
            try:
                params = SamplingParams(temperature=0, max_tokens=64, ignore_eos=True)
                name = "adapter-0" if i % 2 else f"adapter-{i}"
                await llm.engine.generate(list(range(i + 3, i + 3 + PROMPT)), params, adapter=name)
                finished += 1
            except RyzJAXError:
                failed += 1

    one_token = SamplingParams(temperature=0, max_tokens=1, ignore_eos=True)
    before = _counter(llm, "recompiles_total")
    streams = [asyncio.create_task(stream(i)) for i in range(STREAMS)]
    await asyncio.sleep(2.0)
    load_ms: list[float] = []
    live_ms: list[float] = []
    plain_ms: list[float] = []
    for i in range(arguments.loads):
        started = time.perf_counter()
        # The server also loads adapters on a thread, beside the event loop. Two versions of the last adapter alternate.
        await asyncio.to_thread(
            llm.engine.load_adapter, f"adapter-{arguments.slots - 1}", versions[i % 2], replace=True
        )
        loaded = time.perf_counter()
        await llm.engine.generate([5, 6, 7], one_token, adapter=f"adapter-{arguments.slots - 1}")
        load_ms.append((loaded - started) * 1e3)
        live_ms.append((time.perf_counter() - started) * 1e3)
        started = time.perf_counter()
        await llm.engine.generate([5, 6, 7], one_token, adapter="adapter-1")
        plain_ms.append((time.perf_counter() - started) * 1e3)
        await asyncio.sleep(0.1)
    running = False
    await asyncio.gather(*streams)
    return {
        "streams": STREAMS,
        "loads": arguments.loads,
        "requests_finished": finished,
        "requests_failed": failed,
        "recompiles": _counter(llm, "recompiles_total") - before,
        "adapter_bytes_on_device_a_slot": llm.engine.runner.adapter_bytes // arguments.slots,
        "load_call_ms": _spread(load_ms),
        "load_and_first_token_ms": _spread(live_ms),
        "first_token_without_load_ms": _spread(plain_ms),
    }


def _spread(values: list[float]) -> dict[str, float]:
    return {"p50": statistics.median(values), "p99": float(np.percentile(values, 99)), "max": max(values)}


def _counter(llm: LLM, name: str) -> float:
    lines = llm.engine.metrics.render()[0].decode().splitlines()
    return float(next(line for line in lines if line.startswith(f"ryzjax:{name}")).split()[-1])


if __name__ == "__main__":
    main()
