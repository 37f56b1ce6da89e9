"""Conversations with tools: the call and its arguments, the result, and the reply."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from ryzjax.data.synthetic.arithmetic import addition
from ryzjax.data.synthetic.draw import Draw
from ryzjax.data.synthetic.exchange import ChatRow, Check, HeldOut, Message, assistant, user
from ryzjax.data.synthetic.small_talk import small_talk
from ryzjax.data.synthetic.words import CITIES, COLORS, FIRST_NAMES, MONTHS, PRODUCTS, words_of

__all__ = ["calls_tool", "held_out_tool_call", "tool_call_text", "tools"]

Arguments = Mapping[str, "str | int"]

_WITHOUT_CALL = 0.15
"""The share of rows that start with a turn that needs no tool."""


@dataclass(frozen=True, kw_only=True)
class _Tool:
    """A tool: its schema, requests that need it, its results and the replies."""

    name: str
    description: str
    parameters: Mapping[str, str]
    arguments: Callable[[random.Random], Arguments]
    requests: tuple[str, ...]
    result: Callable[[random.Random], Arguments]
    reply: str

    def schema(self) -> Mapping[str, object]:
        return {
            "type": "function",
            "function": {
                "name": self.name,
                "description": self.description,
                "parameters": {
                    "type": "object",
                    "properties": {name: {"type": kind} for name, kind in self.parameters.items()},
                    "required": list(self.parameters),
                },
            },
        }


def tools(draw: Draw) -> ChatRow:
    """Draws one or two requests with one to three tools: call, result and reply, sometimes after small talk."""
    rng = draw.rng
    offered = rng.sample(_TOOLS, rng.randint(1, 3))
    messages: list[Message] = []
    if rng.random() < _WITHOUT_CALL:
        messages += rng.choice((small_talk, addition))(draw).messages()
    for _ in range(rng.choice((1, 1, 1, 2))):
        tool = rng.choice(offered)
        request, arguments = _request(draw, tool)
        result = tool.result(rng)
        messages += [
            user(request),
            _call(tool.name, arguments),
            {"role": "tool", "name": tool.name, "content": json.dumps(result, ensure_ascii=False)},
            assistant(tool.reply.format(**arguments, **result)),
        ]
    return ChatRow(messages=messages, tools=[tool.schema() for tool in offered])


def held_out_tool_call(draw: Draw) -> HeldOut:
    """Draws a request with three tools. The right answer calls the right tool with the right arguments."""
    rng = draw.rng
    offered = rng.sample(_TOOLS, 3)
    tool = rng.choice(offered)
    request, arguments = _request(draw, tool)
    return HeldOut(
        messages=(user(request),),
        answer=tool_call_text(tool.name, arguments),
        check=calls_tool(tool.name, arguments),
        tools=[tool.schema() for tool in offered],
    )


def tool_call_text(name: str, arguments: Arguments) -> str:
    """Returns a call as the chat template writes it."""
    body = json.dumps({"name": name, "arguments": arguments}, ensure_ascii=False)
    return f"<tool_call>\n{body}\n</tool_call>"


def calls_tool(name: str, arguments: Arguments) -> Check:
    """Returns a check that accepts exactly one call of this tool with these arguments."""
    wanted = json.dumps([name, arguments], sort_keys=True)

    def check(text: str) -> bool:
        text = text.strip()
        body = text.removeprefix("<tool_call>").removesuffix("</tool_call>")
        if len(text) - len(body) != len("<tool_call></tool_call>"):
            return False
        try:
            call = json.loads(body)
        except (ValueError, RecursionError):
            return False
        if not isinstance(call, dict) or call.keys() != {"name", "arguments"}:
            return False
        return json.dumps([call["name"], call["arguments"]], sort_keys=True) == wanted

    return check


def _request(draw: Draw, tool: _Tool) -> tuple[str, Arguments]:
    rng = draw.rng
    arguments = draw.fresh(f"tool {tool.name}", lambda: tool.arguments(rng), key=lambda drawn: tuple(drawn.values()))
    return rng.choice(tool.requests).format(**arguments), arguments


def _call(name: str, arguments: Arguments) -> Message:
    call = {"type": "function", "function": {"name": name, "arguments": dict(arguments)}}
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _done(rng: random.Random) -> Arguments:
    return {"status": "ok"}


_TOOLS = (
    _Tool(
        name="get_weather",
        description="The weather in a city.",
        parameters={"city": "string"},
        arguments=lambda rng: {"city": rng.choice(CITIES)},
        requests=(
            "What is the weather in {city}?",
            "How is the weather in {city} today?",
            "Is it warm in {city}?",
            "Weather in {city}?",
        ),
        result=lambda rng: {
            "sky": rng.choice(("sunny", "cloudy", "rainy", "windy", "snowy", "foggy")),
            "degrees": rng.randint(0, 38),
        },
        reply="It is {sky} in {city}, at {degrees} degrees.",
    ),
    _Tool(
        name="get_time",
        description="The time in a city.",
        parameters={"city": "string"},
        arguments=lambda rng: {"city": rng.choice(CITIES)},
        requests=("What time is it in {city}?", "Tell me the time in {city}.", "How late is it in {city}?"),
        result=lambda rng: {"time": f"{rng.randint(10, 23)}:{rng.randint(10, 59)}"},
        reply="It is {time} in {city}.",
    ),
    _Tool(
        name="set_timer",
        description="Starts a timer.",
        parameters={"minutes": "integer"},
        arguments=lambda rng: {"minutes": rng.randint(1, 99)},
        requests=(
            "Set a timer for {minutes} minutes.",
            "Start a timer of {minutes} minutes.",
            "Wake me in {minutes} minutes.",
            "Tell me when {minutes} minutes are over.",
        ),
        result=_done,
        reply="The timer is set for {minutes} minutes.",
    ),
    _Tool(
        name="find_product",
        description="The price of a product.",
        parameters={"product": "string", "color": "string"},
        arguments=lambda rng: {"product": rng.choice(PRODUCTS), "color": rng.choice(COLORS)},
        requests=(
            "How much are {color} {product}?",
            "I am looking for {product} in {color}.",
            "Do you have {color} {product}?",
            "Find me {color} {product}.",
        ),
        result=lambda rng: {"price": rng.randint(2, 99)},
        reply="The {color} {product} cost {price} dollars.",
    ),
    _Tool(
        name="send_message",
        description="Sends a message to somebody.",
        parameters={"to": "string", "text": "string"},
        arguments=lambda rng: {"to": rng.choice(FIRST_NAMES), "text": rng.choice(_TEXTS)},
        requests=(
            "Tell {to}: {text}",
            "Send {to} the message: {text}",
            "Write to {to}: {text}",
            "Please send this to {to}: {text}",
        ),
        result=_done,
        reply="I sent your message to {to}.",
    ),
    _Tool(
        name="add_event",
        description="Puts an event in the calendar.",
        parameters={"title": "string", "day": "integer", "month": "string"},
        arguments=lambda rng: {
            "title": rng.choice(_EVENTS),
            "day": rng.randint(1, 28),
            "month": rng.choice(MONTHS),
        },
        requests=(
            "Put the {title} on {day} {month} in my calendar.",
            "Add the {title} on {day} {month}.",
            "The {title} is on {day} {month}. Please note it.",
        ),
        result=_done,
        reply="The {title} is in your calendar for {day} {month}.",
    ),
    _Tool(
        name="play_music",
        description="Plays music of a kind.",
        parameters={"genre": "string"},
        arguments=lambda rng: {"genre": rng.choice(_GENRES)},
        requests=("Play some {genre} music.", "I would like to hear {genre} music.", "Put on {genre} music."),
        result=_done,
        reply="Here is some {genre} music for you.",
    ),
    _Tool(
        name="set_light",
        description="Sets the lights of a room to a percentage.",
        parameters={"room": "string", "percent": "integer"},
        arguments=lambda rng: {"room": rng.choice(_ROOMS), "percent": rng.randint(0, 100)},
        requests=(
            "Set the light in the {room} to {percent} percent.",
            "Make the light in the {room} {percent} percent.",
            "{percent} percent light in the {room}, please.",
        ),
        result=_done,
        reply="The light in the {room} is at {percent} percent.",
    ),
)
_TEXTS = (
    "I am on my way.",
    "See you tomorrow.",
    "Happy birthday!",
    "Dinner is ready.",
    "The train is late.",
    "Call me back, please.",
    "Thank you for the flowers.",
    "I will be there soon.",
    "The meeting starts at noon.",
    "Do not forget the keys.",
)
_EVENTS = ("meeting", "party", "concert", "dentist", "exam", "wedding", "picnic", "game", "dinner", "lesson")
_GENRES = words_of(
    "jazz rock folk blues pop opera piano guitar dance choir swing soul disco country metal gospel harp violin flute "
    "drum trumpet organ film circus"
)
_ROOMS = ("kitchen", "garden", "hall", "office", "cellar", "bedroom", "garage", "attic", "library", "bathroom")
