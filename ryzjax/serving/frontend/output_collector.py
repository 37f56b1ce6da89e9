"""OutputCollector: joins the deltas of a request into its output, in time linear in their number."""

from __future__ import annotations

from collections.abc import Sequence

from ryzjax.serving.messages.request import CompletionOutput, RequestOutput, StreamDelta, TokenLogprobs

__all__ = ["OutputCollector"]


class OutputCollector:
    """Joins the deltas of one request.

    Args:
      n: The number of completions of the request.
    """

    def __init__(self, n: int):
        self._outputs = [CompletionOutput(index=i) for i in range(n)]
        self._texts: list[list[str]] = [[] for _ in range(n)]
        self._prompt_logprobs: Sequence[TokenLogprobs | None] | None = None

    @property
    def num_tokens(self) -> int:
        """The number of tokens that all completions have generated so far."""
        return sum(len(output.token_ids) for output in self._outputs)

    def add(self, delta: StreamDelta) -> None:
        """Adds the next delta."""
        if delta.prompt_logprobs is not None:
            self._prompt_logprobs = delta.prompt_logprobs
        output = self._outputs[delta.index]
        self._texts[delta.index].append(delta.text)
        output.token_ids.extend(delta.token_ids)
        if delta.logprobs is not None:
            if output.logprobs is None:
                output.logprobs = []
            output.logprobs.extend(delta.logprobs)
        if delta.finish_reason is not None:
            output.finish_reason, output.stop_reason = delta.finish_reason, delta.stop_reason

    def output(self, *, request_id: str, prompt: str | None, prompt_token_ids: Sequence[int]) -> RequestOutput:
        """Returns the output of the request. Call it once, after the last delta."""
        for output, texts in zip(self._outputs, self._texts, strict=True):
            output.text = "".join(texts)
        return RequestOutput(
            request_id=request_id,
            prompt=prompt,
            prompt_token_ids=list(prompt_token_ids),
            outputs=self._outputs,
            prompt_logprobs=self._prompt_logprobs,
        )
