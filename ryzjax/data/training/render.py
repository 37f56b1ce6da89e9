"""Renderer: turns samples into examples, with the tokens that a server feeds the model and the answers as targets.

There are two ways to find the tokens of an assistant turn. A template with {% generation %} blocks marks them. For
other templates, the prompt of a turn is what the server renders of the messages before it, and the turn is what the
template adds with it, up to and including the special token that ends it. Some templates render old turns differently
from new ones (Qwen3 leaves out old thoughts), so no single rendering has every turn as it is generated. Such a row
becomes several examples, in which each turn is trained once, in the context that a server would give it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple

from ryzjax.data.chat import ChatTemplate
from ryzjax.data.row import Row
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.data.training.continuation import continue_ids, encode_pieces
from ryzjax.data.training.example import Example
from ryzjax.data.training.sample import Answer, Conversation, Document, PreferencePair, Sample, TextPair
from ryzjax.errors import DataError, RequestError

__all__ = ["Renderer", "TrainOn"]

TrainOn = Literal["completion", "assistant", "all"]

_logger = logging.getLogger(__name__)
_PROBE = "ryzjax"


class _Turn(NamedTuple):
    """An assistant turn and everything before it. The model generates `token_ids[start:]`."""

    token_ids: list[int]
    start: int


class Renderer:
    """Turns samples into examples.

    Args:
      tokenizer: The model's tokenizer, with the chat template for conversations.
      train_on: "completion" trains the last assistant turn, or the completion if the row has one; "assistant" trains
        every assistant turn; "all" trains every token.
      variables: Variables of the template, such as `enable_thinking`.
    """

    def __init__(self, tokenizer: Tokenizer, *, train_on: TrainOn, variables: Mapping[str, object] | None = None):
        self._tokenizer = tokenizer
        self._train_on: TrainOn = train_on
        self._variables = dict(variables or {})
        self._special_texts = tuple(
            text for i in sorted(tokenizer.special_token_ids) if (text := tokenizer.token_text(i)).strip()
        )
        self._rendered: set[tuple[str, bool]] = set()
        self._warned = False

    def examples(self, sample: Sample, row: Row) -> list[Example]:
        """Returns the examples of a sample: usually one, or chosen and rejected for a preference pair.

        Args:
          sample: The sample.
          row: The row it was read from, for messages.

        Raises:
          DataError: The template refuses the messages, ignores a role, or does not show where a turn starts.
        """
        try:
            if isinstance(sample, Document):
                return [self._document(sample)]
            if isinstance(sample, PreferencePair):
                return [self._single(sample.chosen, row, "chosen"), self._single(sample.rejected, row, "rejected")]
            return self._answer(sample, row, self._train_on)
        except (RequestError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            raise row.error(str(error)) from error

    def _single(self, answer: Answer, row: Row, name: str) -> Example:
        examples = self._answer(answer, row, "completion")
        if len(examples) > 1:
            raise row.error(
                f"{name} has {len(examples)} assistant turns that the chat template renders in different ways when "
                "they are old; expected one turn as the answer. Move the turns before it to the prompt"
            )
        return examples[0]

    def _answer(self, answer: Answer, row: Row, train_on: TrainOn) -> list[Example]:
        if isinstance(answer, TextPair):
            return [self._text_pair(answer, train_on)]
        template = self._tokenizer.template_for(answer.tools)
        if template is None:
            raise row.error(
                "messages need a chat template, and the tokenizer has none; give one with --chat-template FILE, or "
                "data as text or prompt and completion"
            )
        self._check_rendered(answer, row)
        if train_on == "all":
            ids = self._ended(self._encode(self._until_end(self._render(answer, len(answer.messages)))))
            return [Example.of(ids, [(0, len(ids))])]
        wanted = _wanted_turns(answer, train_on)
        if template.marks_generation:
            return [self._marked(answer, template, wanted, row)]
        turns = [self._turn(answer, i, row) for i in wanted if i > 0]
        if not turns:
            raise row.untrained("starts with its only assistant message; expected a message before it that it answers")
        return _merge(turns)

    def _document(self, document: Document) -> Example:
        ids = self._tokenizer.encode(document.text, add_special_tokens=document.begins)
        if document.ends and (not ids or ids[-1] not in self._tokenizer.eos_token_ids):
            ids = [*ids, self._end_of_sequence()]
        return Example.of(ids, [(0, len(ids))])

    def _text_pair(self, pair: TextPair, train_on: TrainOn) -> Example:
        prompt_ids = self._tokenizer.encode(pair.prompt)
        ids = continue_ids(self._tokenizer, pair.prompt, prompt_ids, pair.completion, add_special_tokens=True)
        ids = self._ended(ids)
        return Example.of(ids, [(0 if train_on == "all" else len(prompt_ids), len(ids))])

    def _turn(self, conversation: Conversation, index: int, row: Row) -> _Turn:
        prompt = self._render(conversation, index, add_generation_prompt=True)
        text = self._render(conversation, index + 1)
        turn = text[len(prompt) :] if text.startswith(prompt) else self._after_header(conversation, index, prompt, text)
        if turn is None:
            shared = next((i for i, (a, b) in enumerate(zip(prompt, text, strict=False)) if a != b), len(text))
            raise row.error(
                f"the chat template ends the prompt of messages[{index}] with {prompt[shared:][-60:]!r}, but renders "
                f"the message as {text[shared:][:60]!r}, so a server would never let the model write it. Set a "
                "variable of the template (such as enable_thinking), write the message as the template expects it "
                "(thoughts in reasoning_content or <think>), or give a template with {% generation %} blocks"
            )
        prompt_ids = self._encode(prompt)
        ids = self._ended(continue_ids(self._tokenizer, prompt, prompt_ids, self._until_end(turn)))
        self._check_end(ids[-1])
        return _Turn(ids, len(prompt_ids))

    def _after_header(self, conversation: Conversation, index: int, prompt: str, text: str) -> str | None:
        """Returns the turn in `text` if the template renders the messages before it differently from `prompt`.

        The prompt ends with the header of the turn, so the turn follows the last such header. None if there is no such
        header.
        """
        header = prompt.removeprefix(self._render(conversation, index))
        content = conversation.messages[index].get("content")
        if header in ("", prompt) or header not in text or (isinstance(content, str) and header in content):
            return None
        return text.rpartition(header)[2]

    def _marked(self, conversation: Conversation, template: ChatTemplate, wanted: Sequence[int], row: Row) -> Example:
        messages, tools = conversation.messages, conversation.tools
        marked = self._tokenizer.render_marked(messages, tools=tools, **self._variables)
        turns = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        spans = marked.spans
        if len(wanted) < len(turns) or not spans:
            if len(spans) != len(turns):
                raise row.error(
                    f"the chat template has {len(spans)} {{% generation %}} blocks for {len(turns)} assistant "
                    "messages, so it is unclear which belongs to which; expected one each, or train_on=assistant"
                )
            spans = [span for i, span in zip(turns, spans, strict=True) if i in wanted]
        ids, counts = encode_pieces(self._tokenizer, marked.text, [at for span in spans for at in span])
        tokens = list(zip(counts[::2], counts[1::2], strict=True))
        special = self._tokenizer.special_token_ids
        # Without the ending token, which some blocks leave out, the model would never learn to stop.
        tokens = [
            (start, end + 1 if end < len(ids) and ids[end] in special and ids[end - 1] not in special else end)
            for start, end in tokens
        ]
        if tokens and tokens[-1][1] == len(ids):
            ids = self._ended(ids)
            tokens[-1] = (tokens[-1][0], len(ids))
        end = tokens[-1][1]
        self._check_end(ids[end - 1])
        return Example.of(ids[:end], tokens)

    def _render(self, conversation: Conversation, end: int, *, add_generation_prompt: bool = False) -> str:
        return self._tokenizer.render_prompt(
            conversation.messages[:end],
            tools=conversation.tools,
            add_generation_prompt=add_generation_prompt,
            **self._variables,
        )

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special_tokens=False)

    def _until_end(self, text: str) -> str:
        """Returns the text up to the special token that ends it, without the template's line end after it."""
        stripped = text.rstrip()
        return stripped if self._special_texts and stripped.endswith(self._special_texts) else text

    def _ended(self, ids: list[int]) -> list[int]:
        """Returns the tokens, with the end of sequence appended if no special token ends them."""
        if ids and ids[-1] in self._tokenizer.special_token_ids:
            return ids
        return [*ids, self._end_of_sequence()]

    def _end_of_sequence(self) -> int:
        if not self._tokenizer.eos_token_ids:
            raise DataError(
                "the tokenizer has no end-of-sequence token, so the model cannot learn to stop; set eos_token in its "
                "tokenizer_config.json"
            )
        return self._tokenizer.eos_token_ids[0]

    def _check_end(self, last: int) -> None:
        if not self._warned and last not in self._tokenizer.eos_token_ids:
            self._warned = True
            _logger.warning(
                "assistant turns end with %r, which is not among the end-of-sequence tokens of the model (%s): a "
                "server will not stop there; add it to eos_token_id in generation_config.json",
                self._tokenizer.token_text(last),
                ", ".join(repr(self._tokenizer.token_text(i)) for i in self._tokenizer.eos_token_ids) or "none",
            )

    def _check_rendered(self, conversation: Conversation, row: Row) -> None:
        """Rejects rows with roles, calls or tools that the template ignores, because they would be lost silently."""
        has_tools = bool(conversation.tools)
        for i, message in enumerate(conversation.messages):
            probes = {("role " + repr(message["role"]), has_tools): {"role": message["role"], "content": _PROBE}}
            if message.get("tool_calls"):
                call = {"type": "function", "function": {"name": _PROBE, "arguments": {}}}
                probes["tool_calls", has_tools] = {**message, "tool_calls": [call]}
            for what, probe in probes.items():
                if what not in self._rendered and message != probe:
                    messages = [*conversation.messages[:i], probe, *conversation.messages[i + 1 :]]
                    if not self._differs(conversation, replace(conversation, messages=messages)):
                        raise row.error(f"messages[{i}] has {what[0]}, which the chat template does not render")
                    self._rendered.add(what)
        if has_tools and ("tools", True) not in self._rendered:
            if not self._differs(conversation, replace(conversation, tools=None)):
                raise row.error("has tools, which the chat template does not render; give a template with tools")
            self._rendered.add(("tools", True))

    def _differs(self, conversation: Conversation, other: Conversation) -> bool:
        text = self._render(conversation, len(conversation.messages))
        try:
            return self._render(other, len(other.messages)) != text
        except RequestError:
            return True  # The template reads what the other conversation lacks.


def _wanted_turns(conversation: Conversation, train_on: TrainOn) -> list[int]:
    turns = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
    if train_on == "assistant":
        return turns
    if conversation.completion is None:
        return turns[-1:]
    return [i for i in turns if i >= conversation.completion]


def _merge(turns: Sequence[_Turn]) -> list[Example]:
    """Returns the fewest examples in which every turn follows exactly its own prompt, ordered by their ends."""
    examples: list[Example] = []
    left = list(turns)
    while left:
        longest = left.pop()
        spans = [(longest.start, len(longest.token_ids))]
        rest: list[_Turn] = []
        for turn in left:
            if longest.token_ids[: len(turn.token_ids)] == turn.token_ids:
                spans.append((turn.start, len(turn.token_ids)))
            else:
                rest.append(turn)
        examples.append(Example.of(longest.token_ids, spans))
        left = rest
    return examples[::-1]
