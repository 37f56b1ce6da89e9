"""The command `ryzjax bench serve`: sends load to a running server and measures it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ryzjax.api_key import api_key_or_environment
from ryzjax.bench.client import RequestTimes, send
from ryzjax.bench.report import provenance, serve_report, serve_table
from ryzjax.bench.workload import PlannedRequest, arrival_times, random_workload, trace_workload
from ryzjax.errors import ConfigError

__all__ = ["BenchServe"]


@dataclass(frozen=True, kw_only=True)
class BenchServe:
    """Measure the throughput and latencies of a running OpenAI-compatible server.

    The result has the schema of `vllm bench serve`.
    """

    base_url: str = "http://127.0.0.1:8000"
    """URL of the server."""
    model: str | None = None
    """Name of the model to request. By default the first one that the server lists."""
    api_key: str | None = field(default=None, repr=False)
    """Key to send as a bearer token. By default the value of the environment variable RYZJAX_API_KEY, if it is set."""
    num_prompts: int = 100
    """Number of requests to send."""
    input_tokens: int = 512
    """Mean prompt length of the random workload, in tokens."""
    output_tokens: int = 128
    """Mean output length of the random workload, in tokens."""
    range_ratio: float = 0.0
    """Spread of the random lengths: they are uniform within this fraction of their mean on either side. 0 makes all
    lengths equal to the mean."""
    trace: str | None = None
    """Trace file (Azure CSV or Mooncake JSONL) that gives the lengths instead of the random workload."""
    trace_scale: float = 1.0
    """Factor to multiply the lengths of the trace by."""
    max_input_tokens: int = 1024
    """Longest prompt of a trace, in tokens. Longer ones are cut to this."""
    max_output_tokens: int = 1024
    """Longest output of a trace, in tokens. Longer ones are cut to this."""
    replay_speed: float = 0.0
    """If above 0, send each request at its time in the trace divided by this factor, and ignore request_rate."""
    request_rate: float = float("inf")
    """Mean number of requests per second, with Poisson arrivals. inf sends them as fast as max_concurrency allows."""
    max_concurrency: int | None = None
    """Largest number of requests in flight. By default there is no limit."""
    vocab_size: int = 256
    """Random token ids are drawn from 3 up to, but not including, this number. Every model has the default range."""
    prompts: Literal["tokens", "text"] = "tokens"
    """How prompts are sent: as token ids, or as text for servers that accept no token ids. A text has one random
    letter for each token id, and a tokenizer with merges encodes it in fewer tokens."""
    temperature: float = 0.0
    """Sampling temperature of every request; 0 always takes the likeliest token."""
    ignore_eos: bool = True
    """Generate the full output length even if the model ends earlier. Turn this off for servers that do not know the
    field."""
    goodput_ttft_ms: float | None = None
    """Longest time to the first token of a request that counts for goodput, in milliseconds. By default there is no
    limit."""
    goodput_tpot_ms: float | None = None
    """Longest mean time per output token after the first, of a request that counts for goodput, in milliseconds. By
    default there is no limit."""
    warmup: int = 4
    """Number of requests to send before the measurement. They are not counted."""
    seed: int = 0
    """Seed of the random lengths, tokens and arrival times."""
    timeout_s: float = 600.0
    """Longest wait for the server to send or accept data, in seconds. A request that waits longer counts as failed."""
    output: str | None = None
    """JSON file to write the result to. By default none is written."""

    def run(self) -> int:
        """Sends the load, prints the table, and returns 1 if a request failed, else 0."""
        report = asyncio.run(self._load()) | provenance()
        console = Console()
        console.print(serve_table(report))
        errors = report["errors"]
        for error in errors if isinstance(errors, list) else []:
            console.print(f"failed: {error}", style="red", markup=False)
        if self.output is not None:
            Path(self.output).write_text(json.dumps(report, indent=1) + "\n")
            console.print(f"written to {self.output}")
        return 1 if report["failed"] else 0

    async def _load(self) -> dict[str, object]:
        requests = self._requests()
        arrivals = arrival_times(
            requests, request_rate=self.request_rate, replay_speed=self.replay_speed, seed=self.seed
        )
        api_key = api_key_or_environment(self.api_key)
        headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        # Each request has a connection of its own, as from separate clients: llama-server may close an idle connection
        # just as it is used again.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(
            base_url=self.base_url, headers=headers, limits=limits, timeout=self.timeout_s
        ) as client:
            model = self.model or await self._first_model(client)
            for request in requests[: self.warmup]:
                await self._send(client, request, model)
            started = time.perf_counter()
            times = await self._send_all(client, requests, arrivals, model)
            duration_s = time.perf_counter() - started
        limits_ms = {"ttft": self.goodput_ttft_ms, "tpot": self.goodput_tpot_ms}
        return serve_report(
            times,
            duration_s=duration_s,
            model=model,
            request_rate=self.request_rate,
            max_concurrency=self.max_concurrency,
            goodput_ms={name: limit for name, limit in limits_ms.items() if limit is not None},
        )

    async def _send_all(
        self, client: httpx.AsyncClient, requests: Sequence[PlannedRequest], arrivals: Sequence[float], model: str
    ) -> list[RequestTimes]:
        slots = asyncio.Semaphore(self.max_concurrency or len(requests))
        started = time.perf_counter()
        columns = TextColumn("Requests"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("requests", total=len(requests))

            async def one(request: PlannedRequest, arrival_s: float) -> RequestTimes:
                await asyncio.sleep(max(0.0, arrival_s - (time.perf_counter() - started)))
                async with slots:
                    times = await self._send(client, request, model)
                progress.advance(task)
                return times

            return list(await asyncio.gather(*(one(r, at) for r, at in zip(requests, arrivals, strict=True))))

    async def _send(self, client: httpx.AsyncClient, request: PlannedRequest, model: str) -> RequestTimes:
        return await send(
            client,
            request,
            model=model,
            ignore_eos=self.ignore_eos,
            temperature=self.temperature,
            as_text=self.prompts == "text",
        )

    def _requests(self) -> list[PlannedRequest]:
        if self.trace is None:
            return random_workload(
                count=self.num_prompts,
                input_tokens=self.input_tokens,
                output_tokens=self.output_tokens,
                range_ratio=self.range_ratio,
                vocab_size=self.vocab_size,
                seed=self.seed,
            )
        return trace_workload(
            Path(self.trace),
            count=self.num_prompts,
            scale=self.trace_scale,
            max_input_tokens=self.max_input_tokens,
            max_output_tokens=self.max_output_tokens,
            vocab_size=self.vocab_size,
            seed=self.seed,
        )

    async def _first_model(self, client: httpx.AsyncClient) -> str:
        try:
            response = await client.get("/v1/models")
            response.raise_for_status()
            return str(response.json()["data"][0]["id"])
        except (httpx.HTTPError, KeyError, IndexError, ValueError) as error:
            raise ConfigError(
                f"base_url={self.base_url!r} lists no model ({error!r}); start a server there, or give --model"
            ) from error
