"""The tasks by name, and the share of the tokens of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from ryzjax.data.synthetic import arithmetic as sums
from ryzjax.data.synthetic.about import about
from ryzjax.data.synthetic.copying import copying
from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import ChatRow, Exchange, HeldOut, Message, Task
from ryzjax.data.synthetic.extraction import extraction
from ryzjax.data.synthetic.persona import held_out_persona, persona
from ryzjax.data.synthetic.pieces import pieces
from ryzjax.data.synthetic.retrieval import held_out_retrieval, retrieval
from ryzjax.data.synthetic.routing import routing
from ryzjax.data.synthetic.small_talk import SYSTEM_PROMPTS, held_out_small_talk, small_talk
from ryzjax.data.synthetic.sorting import sorting
from ryzjax.data.synthetic.stories import held_out_story, story
from ryzjax.data.synthetic.strings import strings
from ryzjax.data.synthetic.tools import held_out_tool_call, tools

__all__ = ["HELD_OUT", "MIXTURE", "NEW_TASKS", "TASKS"]

_SYSTEM_PROMPT = 0.25
"""The share of rows with a system prompt."""

_Ask = Callable[[Draw], Exchange]


def _exchanges(ask: _Ask, *, most: int) -> Callable[[Draw], ChatRow]:
    """Returns a function that makes rows of one to `most` exchanges."""
    return lambda draw: _row(draw, [ask] * draw.rng.randint(1, most))


def _item(ask: _Ask) -> Callable[[Draw], HeldOut]:
    return lambda draw: ask(draw).held_out()


def _row(draw: Draw, asks: list[_Ask]) -> ChatRow:
    messages: list[Message] = []
    if draw.rng.random() < _SYSTEM_PROMPT:
        messages.append({"role": "system", "content": draw.rng.choice(SYSTEM_PROMPTS)})
    for ask in asks:
        messages += ask(draw).messages()
    return ChatRow(messages=messages)


def _conversation(draw: Draw) -> ChatRow:
    """Draws two to five exchanges of any kind, sometimes after a greeting."""
    rng = draw.rng
    asks: list[_Ask] = [small_talk] if rng.random() < 0.4 else []
    return _row(draw, asks + rng.choices(_ANY, k=rng.randint(2, 5)))


_ANY: tuple[_Ask, ...] = (
    sums.addition,
    sums.addition,
    sums.arithmetic,
    extraction,
    extraction,
    strings,
    sorting,
    about,
    about,
    small_talk,
    story,
)

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        Task(
            name="addition",
            description="Sums of two numbers of one to three digits, mostly two; held-out items have two digits.",
            row=_exchanges(sums.addition, most=8),
            item=_item(sums.two_digit_addition),
        ),
        Task(
            name="arithmetic",
            description="Differences, products, sums of three, word problems, comparisons, doubles, halves, parity.",
            row=_exchanges(sums.arithmetic, most=6),
            item=_item(sums.arithmetic),
        ),
        Task(
            name="extraction",
            description="Facts of a sentence as JSON with the requested keys.",
            row=_exchanges(extraction, most=3),
            item=_item(extraction),
        ),
        Task(
            name="retrieval",
            description="Values looked up by key in a list; held-out items have at least 1024 tokens.",
            row=retrieval,
            item=held_out_retrieval,
        ),
        Task(
            name="copying",
            description="Words to repeat.",
            row=_exchanges(copying, most=4),
            item=_item(copying),
        ),
        Task(
            name="strings",
            description="Spelling, reversing, counting, first and last letters, capitals.",
            row=_exchanges(strings, most=6),
            item=_item(strings),
        ),
        Task(
            name="sorting",
            description="Numbers and words to sort.",
            row=_exchanges(sorting, most=4),
            item=_item(sorting),
        ),
        Task(
            name="tools",
            description="Tool calls, and replies from their results; held-out items are calls.",
            row=tools,
            item=held_out_tool_call,
        ),
        Task(
            name="stories",
            description="Tiny stories about an animal and a thing.",
            row=_exchanges(story, most=1),
            item=held_out_story,
        ),
        Task(
            name="small_talk",
            description="Greetings, what the model is, and what it cannot know; held-out items ask for the last.",
            row=_exchanges(small_talk, most=3),
            item=held_out_small_talk,
        ),
        Task(
            name="persona",
            description="Names of user and model from the system prompt or an earlier turn.",
            row=persona,
            item=held_out_persona,
        ),
        Task(
            name="about",
            description="Questions about RyzJAX; held-out items use other wordings.",
            row=_exchanges(about, most=3),
            item=_item(about),
        ),
        Task(
            name="conversation",
            description="Several of the above in one conversation; held-out items are of any kind.",
            row=_conversation,
            item=lambda draw: draw.rng.choice(_ANY)(draw).held_out(),
        ),
        Task(
            name="pieces",
            description="Pieces of the vocabulary, alone and in invented words, to repeat, list or look up.",
            row=_exchanges(pieces, most=4),
            item=_item(pieces),
        ),
    )
}
"""The tasks that the demo model is trained on."""

MIXTURE: Mapping[str, float] = {
    "addition": 0.16,
    "arithmetic": 0.07,
    "extraction": 0.17,
    "retrieval": 0.29,
    "copying": 0.03,
    "strings": 0.04,
    "sorting": 0.04,
    "tools": 0.06,
    "stories": 0.02,
    "small_talk": 0.02,
    "persona": 0.01,
    "about": 0.03,
    "conversation": 0.06,
}
"""Each task's share of the tokens in the first stage of training the demo model. The tokenizer is learned from rows of
this mixture. The task `pieces` uses pieces of that tokenizer, so it is part of the second stage only
(configs/train/demo-2.toml)."""

NEW_TASKS: Mapping[str, Task] = {
    "routing": Task(
        name="routing",
        description="Messages to a help desk and the queue each goes to, urgent or not.",
        row=_exchanges(routing, most=1),
        item=_item(routing),
    )
}
"""Tasks that the demo model is not trained on. Use them to fine-tune it."""

HELD_OUT: Mapping[str, Callable[[Draw], HeldOut]] = {
    **{name: task.item for name, task in {**TASKS, **NEW_TASKS}.items()},
    "retrieval_2k": partial(held_out_retrieval, context_pieces=1700),
}
"""The tasks with held-out items: every task, and retrieval from lists as long as the longest in training."""
