"""Sends one streamed completion request and measures its times."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field

import httpx

from ryzjax.bench.workload import PlannedRequest

__all__ = ["RequestTimes", "send"]


@dataclass(kw_only=True, slots=True)
class RequestTimes:
    """The measurements of one request. Times are in seconds.

    Attributes:
      prompt_tokens: The prompt's length as the server counts it, or as it was sent if the server does not say.
      output_tokens: The output's length as the server counts it.
      ttft_s: The time to the first token.
      itl_s: The times between consecutive chunks of tokens.
      e2el_s: The time to the last chunk.
      error: The reason of a failure; None for a successful request.
    """

    prompt_tokens: int
    output_tokens: int = 0
    ttft_s: float = 0.0
    itl_s: list[float] = field(default_factory=list)
    e2el_s: float = 0.0
    error: str | None = None


async def send(
    client: httpx.AsyncClient,
    request: PlannedRequest,
    *,
    model: str,
    ignore_eos: bool,
    temperature: float,
    as_text: bool = False,
) -> RequestTimes:
    """Streams one completion. A refusal or a broken stream gives a failed request, not an exception.

    Args:
      client: A client with the base URL of the server.
      request: The request to send.
      model: The name of the model.
      ignore_eos: Whether to generate the full length even if the model ends earlier.
      temperature: The sampling temperature.
      as_text: Whether to send a letter for each token id, for servers that accept no token ids.
    """
    times = RequestTimes(prompt_tokens=len(request.prompt_token_ids))
    body: dict[str, object] = {
        "model": model,
        "prompt": _letters(request.prompt_token_ids) if as_text else request.prompt_token_ids,
        "max_tokens": request.output_tokens,
        "temperature": temperature,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if ignore_eos:
        body["ignore_eos"] = True
    started = last = time.perf_counter()
    try:
        async with client.stream("POST", "/v1/completions", json=body) as response:
            if response.status_code != 200:
                text = (await response.aread()).decode(errors="replace")
                times.error = f"HTTP {response.status_code}: {text[:200]}"
                return times
            async for line in response.aiter_lines():
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                event = json.loads(line[6:])
                now = time.perf_counter()
                if "error" in event:
                    times.error = str(event["error"])
                    return times
                if usage := event.get("usage"):
                    times.prompt_tokens = usage.get("prompt_tokens", times.prompt_tokens)
                    times.output_tokens = usage["completion_tokens"]
                if event["choices"]:
                    if times.ttft_s == 0.0:
                        times.ttft_s = now - started
                    else:
                        times.itl_s.append(now - last)
                    last = now
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        times.error = repr(error)
    times.e2el_s = last - started
    if times.error is None and times.output_tokens == 0:
        times.error = "the stream ended without a usage count"
    return times


def _letters(token_ids: list[int]) -> str:
    return "".join(chr(ord("a") + token % 26) for token in token_ids)
