"""CompletionFormat: the answers of /v1/completions, whole or streamed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ryzjax.serving.http.answer import Choice, Usage
from ryzjax.serving.http.openai.echo import Echo
from ryzjax.serving.http.openai.envelope import Envelope, dumps, finish_fields, logprob_blocks
from ryzjax.serving.http.openai.logprobs import CompletionLogprobs, completion_logprobs
from ryzjax.serving.http.token_texts import TokenTexts
from ryzjax.serving.messages.request import StreamDelta, TokenLogprobs

__all__ = ["CompletionFormat"]


class CompletionFormat:
    """Writes the answers of /v1/completions. With `echo`, the prompt precedes the completion of each choice."""

    def __init__(
        self,
        *,
        answer_id: str,
        model: str,
        texts: TokenTexts,
        include_usage: bool,
        skip_special_tokens: bool = True,
        echo: Echo | None = None,
    ):
        kind = "text_completion"
        self._envelope = Envelope(
            answer_id=answer_id, model=model, kind=kind, chunk_kind=kind, include_usage=include_usage
        )
        self._texts = texts
        self._skip_special_tokens = skip_special_tokens
        self._echo = echo
        self._offsets: dict[int, int] = {}

    def pieces(self, choices: Sequence[Choice], usage: Usage) -> Iterator[bytes]:
        """Yields a whole answer in pieces."""
        return self._envelope.pieces(map(self._choice, choices), usage)

    def _choice(self, choice: Choice) -> Iterator[str]:
        completion, prompt_logprobs = choice
        text = dumps(self._prompt(completion.index) + completion.text)
        yield f'{{"index":{completion.index},"text":{text},"logprobs":'
        yield from self._logprobs(completion.index, completion.logprobs, prompt_logprobs)
        reasons = f'"finish_reason":{dumps(completion.finish_reason)},"stop_reason":{dumps(completion.stop_reason)}'
        yield f",{reasons}}}"

    def _prompt(self, choice: int) -> str:
        return "" if self._echo is None else self._echo.text(choice)

    def _logprobs(
        self,
        choice: int,
        tokens: Sequence[TokenLogprobs] | None,
        prompt_logprobs: Sequence[TokenLogprobs | None] | None = None,
    ) -> Iterator[str]:
        """Yields the `logprobs` object of one choice or chunk in pieces, or null."""
        first, scored = None, ()
        if self._echo is not None and self._echo.with_logprobs and prompt_logprobs is not None:
            first = self._echo.first_token_id(choice)
            scored = prompt_logprobs
        elif tokens is None:
            yield "null"
            return
        with_top = any(sequence[-1] is not None and sequence[-1].top for sequence in (scored, tokens or ()) if sequence)
        columns: dict[str, list[str]] = {name: [] for name in CompletionLogprobs.__annotations__}
        for block in logprob_blocks(scored, tokens or (), with_first=first is not None):
            found, self._offsets[choice] = completion_logprobs(
                block,
                self._texts,
                self._offsets.get(choice, 0),
                first_token_id=first,
                is_echo=self._echo is not None,
                with_top=with_top,
                skip_special_tokens=self._skip_special_tokens,
            )
            first = None
            for name, values in columns.items():
                column = found[name]
                if column:
                    values.append(dumps(column)[1:-1])
            yield ""
        for number, (name, values) in enumerate(columns.items()):
            yield f'{"," if number else "{"}"{name}":'
            if name == "top_logprobs" and not with_top:
                yield "null"
                continue
            yield "["
            for position, value in enumerate(values):
                yield f",{value}" if position else value
            yield "]"
        yield "}"

    @property
    def opening_size(self) -> int:
        """The estimated size of `opening` for each choice, in characters."""
        if self._echo is None or self._echo.with_logprobs:
            return 0
        return max(map(len, self._echo.texts))

    def opening(self, choices: int) -> Iterator[bytes]:
        """Yields the echoed prompts, unless they come later, with their log-probabilities."""
        if self._echo is not None and not self._echo.with_logprobs:
            for choice in range(choices):
                yield from self._prompt_event(choice, None)

    def _prompt_event(self, choice: int, prompt_logprobs: Sequence[TokenLogprobs | None] | None) -> Iterator[bytes]:
        def pieces() -> Iterator[str]:
            yield f'{{"index":{choice},"text":{dumps(self._prompt(choice))},"logprobs":'
            yield from self._logprobs(choice, None, prompt_logprobs)
            yield ',"finish_reason":null}'

        return self._envelope.event_pieces(pieces())

    def events(self, choice: int, delta: StreamDelta) -> Iterator[bytes]:
        """Yields the events of one delta."""
        if delta.prompt_logprobs is not None:
            if self._echo is not None and self._echo.with_logprobs:
                # The delta comes once for all completions of its prompt.
                for one in range(choice, choice + self._echo.n):
                    yield from self._prompt_event(one, delta.prompt_logprobs)
        elif delta.text or delta.finish_reason is not None or delta.logprobs:
            logprobs = "null" if not delta.logprobs else "".join(self._logprobs(choice, delta.logprobs))
            end = finish_fields(delta)
            text = dumps(delta.text)
            yield self._envelope.event(f'{{"index":{choice},"text":{text},"logprobs":{logprobs},{end}}}')

    def usage_chunk(self, usage: Usage) -> bytes:
        """Returns the event that holds the token counts and no choice."""
        return self._envelope.usage_event(usage)
