"""The command `ryzjax bench offline`: measures decode steps, prefill and throughput of a model in this process."""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from tyro.conf import OmitArgPrefixes

from ryzjax.bench.report import provenance
from ryzjax.bench.workload import random_workload
from ryzjax.errors import ConfigError
from ryzjax.serving.messages.config import EngineConfig
from ryzjax.serving.messages.request import EngineRequest
from ryzjax.serving.messages.sampling_params import SamplingParams

if TYPE_CHECKING:
    from ryzjax.serving.engine.engine import Engine
    from ryzjax.serving.frontend.llm import LLM

__all__ = ["BenchOffline", "DecodeRun", "decode_step_seconds", "prefill_seconds"]


@dataclass(frozen=True, kw_only=True)
class BenchOffline:
    """Measure decode steps, prefill, and the throughput of a batch of prompts in this process, without a server."""

    engine: OmitArgPrefixes[EngineConfig]
    config: str | None = None
    """TOML file with values for any of these flags, or the name of a file in configs/serve. Flags override the
    file."""
    batches: tuple[int, ...] = (1, 8)
    """Batch sizes of the decode measurement, in sequences."""
    contexts: tuple[int, ...] = (1024,)
    """Context lengths of the decode measurement, in tokens."""
    prefill_tokens: int = 512
    """Prompt length of the prefill measurement, in tokens."""
    steps: int = 16
    """Number of decode steps to measure in each case."""
    num_prompts: int = 0
    """Number of prompts of the throughput measurement; 0 skips it."""
    input_tokens: int = 256
    """Mean prompt length of the throughput measurement, in tokens."""
    output_tokens: int = 64
    """Mean output length of the throughput measurement, in tokens."""
    output: str | None = None
    """JSON file to write the result to. By default none is written."""

    def run(self) -> int:
        """Measures, prints a table, and returns the exit status."""
        from ryzjax.serving.frontend.llm import LLM

        options = asdict(self.engine)
        with LLM(options.pop("model"), **options) as llm:
            figures = self._throughput(llm) if self.num_prompts else {}
        # The steps are measured on this thread, after the engine's own thread has stopped.
        figures |= self._steps(llm)
        table = Table("case", "median", title=f"{llm.engine.model_name}, {llm.engine.model_config.dtype}")
        for case, figure in figures.items():
            table.add_row(case, f"{figure:,.2f}")
        console = Console()
        console.print(table)
        if self.output is not None:
            result = {"model": self.engine.model, "figures": figures} | provenance()
            Path(self.output).write_text(json.dumps(result, indent=1) + "\n")
            console.print(f"written to {self.output}")
        return 0

    def _steps(self, llm: LLM) -> dict[str, float]:
        engine, longest = llm.engine.core, llm.engine.max_context_tokens
        figures: dict[str, float] = {}
        for context in self.contexts:
            for batch in self.batches:
                if context + self.steps + 8 > longest:
                    raise ConfigError(
                        f"context={context} + {self.steps + 8} steps exceed the {longest} tokens that fit"
                    )
                seconds = decode_step_seconds(engine, batch=batch, context=context, steps=self.steps)
                median = statistics.median(seconds)
                figures[f"decode, batch {batch}, context {context}: ms a step"] = median * 1e3
                figures[f"decode, batch {batch}, context {context}: tokens/s"] = batch / median
        median = statistics.median(prefill_seconds(engine, tokens=self.prefill_tokens, repeats=3))
        figures[f"prefill {self.prefill_tokens}: tokens/s"] = self.prefill_tokens / median
        return figures

    def _throughput(self, llm: LLM) -> dict[str, float]:
        requests = random_workload(
            count=self.num_prompts,
            input_tokens=self.input_tokens,
            output_tokens=self.output_tokens,
            range_ratio=0.5,
            vocab_size=llm.engine.model_config.vocab_size,
            seed=0,
        )
        params = [SamplingParams(temperature=0, max_tokens=r.output_tokens, ignore_eos=True) for r in requests]
        started = time.perf_counter()
        llm.generate([{"prompt_token_ids": r.prompt_token_ids} for r in requests], params)
        seconds = time.perf_counter() - started
        return {
            f"throughput of {self.num_prompts} prompts: output tokens/s": sum(r.output_tokens for r in requests)
            / seconds
        }


def decode_step_seconds(engine: Engine, *, batch: int, context: int, steps: int) -> list[float]:
    """Returns the durations of decode steps, in seconds, with the steps run as a server runs them.

    Args:
      engine: An idle engine.
      batch: The number of sequences that decode together.
      context: The approximate context length of each sequence, in tokens.
      steps: The number of steps to measure.

    Raises:
      ConfigError: A sequence reaches the longest context before `steps` steps are measured.
    """
    run = DecodeRun(engine, batch=batch, context=context)
    try:
        return run.seconds(steps)
    finally:
        run.close()


class DecodeRun:
    """Sequences of about `context` tokens that decode together on an otherwise idle engine.

    The first sequences already decode while the last ones prefill, so they are some tokens longer.
    """

    _SETTLING = 3
    """Number of steps to skip each time all sequences start to decode together."""

    def __init__(self, engine: Engine, *, batch: int, context: int):
        self.engine = engine
        self.batch = batch
        self.context = context
        self._names = [f"decode-{i}" for i in range(batch)]
        for i, name in enumerate(self._names):
            engine.add(_request(name, i, context, engine.scheduler.max_context_tokens - context))

    def seconds(self, steps: int) -> list[float]:
        """Returns the durations, in seconds, of the next `steps` steps in which every sequence gets a token.

        Raises:
          ConfigError: A sequence reaches the longest context before that.
        """
        seconds: list[float] = []
        together = 0
        last = time.perf_counter()
        while self.engine.has_work and len(seconds) < steps:
            events = self.engine.step()
            now = time.perf_counter()
            together = together + 1 if len(events) == self.batch else 0
            if together > self._SETTLING:
                seconds.append(now - last)
            last = now
        if len(seconds) < steps:
            raise ConfigError(
                f"batch={self.batch} sequences of {self.context} tokens decode together {len(seconds)} times, not "
                f"{steps}, before one reaches max_context_tokens={self.engine.scheduler.max_context_tokens}"
            )
        return seconds

    def close(self) -> None:
        """Aborts the sequences."""
        for name in self._names:
            self.engine.abort(name)
        while self.engine.has_work:
            self.engine.step()


def prefill_seconds(engine: Engine, *, tokens: int, repeats: int) -> list[float]:
    """Returns the times to the first token of prompts of `tokens` tokens on an idle engine, in seconds."""
    seconds: list[float] = []
    for i in range(repeats + 1):
        started = time.perf_counter()
        engine.add(_request(f"prefill-{i}", i, tokens, 1))
        while engine.has_work:
            engine.step()
        seconds.append(time.perf_counter() - started)
    return seconds[1:]


def _request(request_id: str, index: int, context: int, new_tokens: int) -> EngineRequest:
    return EngineRequest(
        request_id=request_id,
        prompt_token_ids=tuple((index * 7919 + i * 104_729) % 250 + 3 for i in range(context)),
        params=SamplingParams(temperature=0, max_tokens=new_tokens, ignore_eos=True),
        stop_token_ids=frozenset(),
        max_new_tokens=new_tokens,
        seed=0,
        arrival_s=time.monotonic(),
    )
