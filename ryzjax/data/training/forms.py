"""The forms of rows, how they are detected from the columns, and how each is read as a sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

from ryzjax.data.row import Row
from ryzjax.data.training.messages import read_conversation_column, read_messages, read_tools
from ryzjax.data.training.sample import Answer, Conversation, Document, PreferencePair, Sample, TextPair

__all__ = ["Form", "detect_form", "read_sample"]

Form = Literal["messages", "prompt_completion", "alpaca", "preference", "text"]

_COLUMNS: Mapping[Form, tuple[tuple[str, ...], ...]] = {
    # The first match counts: preference pairs often keep the columns they were made from.
    "preference": (("chosen", "rejected"),),
    "messages": (("messages",), ("conversations",), ("conversation",)),
    "prompt_completion": (("prompt", "completion"),),
    "alpaca": (("instruction", "output"),),
    "text": (("text",),),
}


def detect_form(row: Row) -> Form:
    """Returns the form whose columns the row has.

    Raises:
      DataError: The row has the columns of no form.
    """
    for form, choices in _COLUMNS.items():
        if any(all(name in row for name in names) for names in choices):
            return form
    expected = "; ".join(f"{form}: {' or '.join('+'.join(n) for n in names)}" for form, names in _COLUMNS.items())
    raise row.error(f"columns {', '.join(map(repr, row.values)) or 'none'} match no known form. Expected {expected}")


def read_sample(row: Row, form: Form, *, has_template: bool) -> Sample:
    """Reads a row of a form as a sample.

    Args:
      row: The row.
      form: Its form.
      has_template: Whether there is a chat template. With one, alpaca rows become user and assistant messages; without
        one, text in Alpaca's own layout.

    Raises:
      UntrainedRowError: The answer is empty, or no message is the assistant's.
      DataError: Columns are missing or malformed.
    """
    return _READERS[form](row, has_template)


def _messages(row: Row, has_template: bool) -> Sample:
    return _checked(row, Conversation(messages=read_conversation_column(row), tools=read_tools(row)))


def _prompt_completion(row: Row, has_template: bool) -> Sample:
    return _pair(row, "prompt", "completion")


def _alpaca(row: Row, has_template: bool) -> Sample:
    return _alpaca_answer(row, "output", has_template)


def _text(row: Row, has_template: bool) -> Sample:
    text = row.text("text")
    if not text:
        raise row.untrained("text is empty; expected at least one character")
    return Document(text=text, begins=row.values.get("begins") is not False, ends=row.values.get("ends") is not False)


def _preference(row: Row, has_template: bool) -> Sample:
    if "prompt" in row:
        return PreferencePair(chosen=_pair(row, "prompt", "chosen"), rejected=_pair(row, "prompt", "rejected"))
    if "instruction" in row:
        chosen, rejected = (_alpaca_answer(row, name, has_template) for name in ("chosen", "rejected"))
        return PreferencePair(chosen=chosen, rejected=rejected)
    if isinstance(row.value("chosen"), str):
        return _split_texts(row, row.text("chosen"), row.text("rejected"))
    return _split_messages(row)


_READERS: Mapping[Form, Callable[[Row, bool], Sample]] = {
    "messages": _messages,
    "prompt_completion": _prompt_completion,
    "alpaca": _alpaca,
    "preference": _preference,
    "text": _text,
}


def _pair(row: Row, prompt: str, completion: str) -> Answer:
    """Reads two columns of text, or two of messages."""
    before, after = row.value(prompt), row.value(completion)
    if after is None or after == "" or after == []:
        expected = "text" if isinstance(before, str) else "an assistant message"
        raise row.untrained(f"{completion} is empty; expected {expected} to train on")
    if isinstance(before, str) and isinstance(after, str):
        return TextPair(prompt=before, completion=after)
    if isinstance(before, str) != isinstance(after, str):
        kinds = f"{prompt} is a {type(before).__name__} and {completion} a {type(after).__name__}"
        raise row.error(f"{kinds}; expected both as text, or both as lists of messages")
    messages = read_messages(row, prompt)
    answer = read_messages(row, completion)
    # Some data sets repeat the prompt before each answer.
    if answer[: len(messages)] == messages and len(answer) > len(messages):
        answer = answer[len(messages) :]
    return _checked(
        row, Conversation(messages=[*messages, *answer], tools=read_tools(row), completion=len(messages)), completion
    )


def _alpaca_answer(row: Row, output: str, has_template: bool) -> Answer:
    if row.value(output) in (None, ""):
        raise row.untrained(f"{output} is empty; expected text to train on")
    instruction, answer = row.text("instruction"), row.text(output)
    more = row.text("input") if row.values.get("input") else ""
    if has_template:
        question = f"{instruction}\n\n{more}" if more else instruction
        system = [{"role": "system", "content": row.text("system")}] if row.values.get("system") else []
        messages = [*system, {"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return Conversation(messages=messages, completion=len(messages) - 1)
    given = f"### Input:\n{more}\n\n" if more else ""
    return TextPair(prompt=f"### Instruction:\n{instruction}\n\n{given}### Response:\n", completion=answer)


def _split_texts(row: Row, chosen: str, rejected: str) -> PreferencePair:
    """Splits two whole texts: the prompt is their common start, up to the last whole word."""
    for name, text in (("chosen", chosen), ("rejected", rejected)):
        if not text:
            raise row.untrained(f"{name} is empty; expected text to train on")
    cut = next(
        (i for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)) if a != b), min(len(chosen), len(rejected))
    )
    if not (chosen[cut : cut + 1].strip() == "" == rejected[cut : cut + 1].strip()):
        # Back to the start of the word. A space belongs to the word after it, as in tokenizers.
        cut = max(chosen.rfind(" ", 0, cut), chosen.rfind("\n", 0, cut) + 1)
    prompt = chosen[:cut]
    if not prompt or not chosen[cut:].strip() or not rejected[cut:].strip():
        raise row.error("chosen and rejected must start alike and end differently; add a prompt column")
    return PreferencePair(
        chosen=TextPair(prompt=prompt, completion=chosen[cut:]),
        rejected=TextPair(prompt=prompt, completion=rejected[cut:]),
    )


def _split_messages(row: Row) -> PreferencePair:
    chosen, rejected = read_messages(row, "chosen"), read_messages(row, "rejected")
    shared = 0
    while shared < min(len(chosen), len(rejected)) and chosen[shared] == rejected[shared]:
        shared += 1
    if shared == 0:
        raise row.error("chosen and rejected have no first message in common; expected the same prompt in both")
    tools = read_tools(row)
    answers = (
        _checked(row, Conversation(messages=messages, tools=tools, completion=shared), name)
        for name, messages in (("chosen", chosen), ("rejected", rejected))
    )
    first, second = answers
    return PreferencePair(chosen=first, rejected=second)


def _checked(row: Row, conversation: Conversation, column: str = "messages") -> Conversation:
    answers: Sequence[Mapping[str, object]] = conversation.messages[conversation.completion or 0 :]
    if not any(message["role"] == "assistant" for message in answers):
        roles = [str(message["role"]) for message in answers]
        raise row.untrained(
            f"{column} has no assistant message to train on; its roles are {', '.join(roles) or 'none'}"
        )
    return conversation
