"""CompletionStream: one sequence's tokens become text, up to a stop string."""

from __future__ import annotations

from ryzjax.data.detokenizer import IncrementalDetokenizer
from ryzjax.data.stop_strings import StopStringMatcher, StopStrings
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.serving.request import StreamDelta, TokenEvent
from ryzjax.serving.sampling_params import SamplingParams

__all__ = ["CompletionStream"]


class CompletionStream:
    """Turns the events of one sequence into deltas.

    Args:
      index: which of the request's completions.
      tokenizer: turns the tokens into text.
      params: the request's settings.
      stops: the request's stop strings; its completions share them.
      prompt_token_ids: context for the first word's leading space.
    """

    def __init__(
        self,
        index: int,
        tokenizer: Tokenizer,
        params: SamplingParams,
        stops: StopStrings,
        prompt_token_ids: tuple[int, ...],
    ):
        self.index = index
        self._include_stop = params.include_stop_str_in_output
        self._text = IncrementalDetokenizer(tokenizer, params.skip_special_tokens, prompt_token_ids=prompt_token_ids)
        self._stops = StopStringMatcher(stops)
        self.is_finished = False

    def push(self, event: TokenEvent) -> StreamDelta:
        """The delta of one event. A stop string ends the completion: `is_finished` while the event was not last."""
        shown = event.token_ids
        if event.stop_token_id is not None and not self._include_stop:
            shown = shown[:-1]  # a stop token is reported, but is not text
        text, matched = self._stops.push(self._text.push(shown))
        reason, stop_reason = event.finish_reason, event.stop_token_id
        if matched is None and reason is not None:
            more, matched = self._stops.push(self._text.flush())
            text += more
            if matched is None:
                text += self._stops.flush()
        if matched is not None:
            reason, stop_reason = "stop", matched
        self.is_finished = reason is not None
        return StreamDelta(
            index=self.index,
            text=text,
            token_ids=event.token_ids,
            logprobs=event.logprobs,
            finish_reason=reason,
            stop_reason=stop_reason,
        )
