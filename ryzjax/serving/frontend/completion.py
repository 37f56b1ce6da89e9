"""CompletionStream: turns the tokens of one sequence into text, up to a stop string."""

from __future__ import annotations

from collections.abc import Sequence

from ryzjax.data.detokenizer import IncrementalDetokenizer
from ryzjax.data.stop_strings import StopStringMatcher, StopStrings
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.serving.messages.request import StreamDelta, TokenEvent
from ryzjax.serving.messages.sampling_params import SamplingParams

__all__ = ["CompletionStream"]


class CompletionStream:
    """Turns the events of one sequence into deltas.

    Args:
      index: The index of the completion in its request.
      tokenizer: The tokenizer of the model.
      params: The settings. With `min_tokens`, a stop string must end in the text of a token after these.
      stops: The stop strings, which all completions of the request share.
      prompt_token_ids: The prompt, which decides whether the first word has a leading space.
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
        # Number of coming tokens in whose text no stop string may end.
        self._num_skipped = params.min_tokens
        self._is_checked = params.min_tokens == 0
        self.is_finished = False

    def push(self, event: TokenEvent) -> StreamDelta:
        """Returns the delta of one event. A stop string sets `is_finished` before the last event of the sequence."""
        shown = event.token_ids
        if event.stop_token_id is not None and not self._include_stop:
            shown = shown[:-1]  # a stop token is reported, but it is not a part of the text
        text, matched = self._text_of(shown)
        reason, stop_reason = event.finish_reason, event.stop_token_id
        if matched is None and reason is not None:
            if self._is_checked:
                more, matched = self._stops.push(self._text.flush())
            else:
                more = self._stops.skip(self._text.flush())
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

    def _text_of(self, token_ids: Sequence[int]) -> tuple[str, str | None]:
        """Returns the text of more tokens that is final, and the stop string that ends it, if any."""
        skipped = ""
        if self._num_skipped:
            early, token_ids = token_ids[: self._num_skipped], token_ids[self._num_skipped :]
            self._num_skipped -= len(early)
            skipped = self._stops.skip(self._text.push(early))
        self._is_checked = self._is_checked or bool(token_ids)
        text, matched = self._stops.push(self._text.push(token_ids))
        return skipped + text, matched
