"""Answers of synthetic tasks are right: each is worked out again from its question alone."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pytest

from ryzjax.data.synthetic import HELD_OUT, HeldOut, SyntheticRows, held_out
from ryzjax.data.synthetic.about import FACTS
from ryzjax.data.synthetic.words import KEYS
from tests.data.synthetic.lists import listed

Pair = tuple[str, str]


def exchanges(task: str, count: int = 300) -> list[Pair]:
    """Returns (question, answer) pairs of training rows and of held-out items."""
    pairs: list[Pair] = []
    for row in SyntheticRows(11, count, mixture={task: 1}):
        messages = [message for message in row["messages"] if message["role"] != "system"]
        pairs += [
            (str(asked["content"]), str(said["content"]))
            for asked, said in zip(messages[::2], messages[1::2], strict=True)
        ]
    return pairs + [(str(item.messages[-1]["content"]), item.answer) for item in held_out(task, 50)]


def numbers(text: str) -> list[int]:
    return [int(found) for found in re.findall(r"\d+", text)]


def test_sums() -> None:
    for question, answer in exchanges("addition"):
        a, b = numbers(question)
        assert answer == f"{a} + {b} = {a + b}", question


def test_arithmetic() -> None:
    kinds: set[str] = set()
    for question, answer in exchanges("arithmetic", 500):
        given = numbers(question)
        sides = answer.split(" = ")
        if len(sides) > 1:
            kinds.add(re.sub(r"\d+", "", sides[0]))
            # `*` and `/` have the same meaning in Python. Only arithmetic is evaluated.
            assert all(re.fullmatch(r"[\d +*/-]+", side) for side in sides)
            assert len({eval(side) for side in sides}) == 1, answer
            used = numbers(sides[0])
            assert used == given or (question.startswith("Subtract") and used == given[::-1]) or len(given) == 1
        elif answer.endswith((" is even.", " is odd.")):
            kinds.add("parity")
            assert answer == f"{given[0]} is {'odd' if given[0] % 2 else 'even'}."
        else:
            kinds.add("comparison")
            assert int(answer) == (max if re.search("larger|bigger|greater", question) else min)(given)
    assert kinds == {" + ", " - ", " * ", " / ", " +  + ", "parity", "comparison"}


def test_word_problems_ask_for_what_is_answered() -> None:
    for question, answer in exchanges("arithmetic", 500):
        if "left?" in question:
            assert " - " in answer
        if question.startswith("How many") or "now?" in question or "in all?" in question:
            assert " + " in answer


def test_strings() -> None:
    seen: set[str] = set()
    for question, answer in exchanges("strings"):
        letters = re.search(r"((?:\b[a-z]\b ?){3,6})\??$", question)
        word = (
            "".join(letters[1].split())
            if letters
            else next(w for w in re.findall(r"[a-z]+", question)[::-1] if w in KEYS)
        )
        spaced = " ".join(word)
        low = question.lower()
        if "back" in low or "reverse" in low:
            expected, kind = spaced[::-1], "reverse"
        elif "first" in low or "begin" in low:
            expected, kind = word[0], "first"
        elif "last" in low or "end with" in low:
            expected, kind = word[-1], "last"
        elif "capital" in low or "upper" in low:
            expected, kind = word.upper(), "capitals"
        elif "how many" in low or "how long" in low or "count" in low:
            expected, kind = f"{spaced}: {len(word)}", "count"
        else:
            expected, kind = spaced, "spell"
        seen.add(kind)
        assert answer == expected, question
    assert len(seen) == 6


def test_sorting() -> None:
    for question, answer in exchanges("sorting"):
        given = numbers(question)
        if not given:
            words = question.split(": ")[1].split(", ")
            assert answer == ", ".join(sorted(words))
        elif ", " not in answer:
            largest = re.search("largest|biggest|highest", question) is not None
            assert int(answer) == (max if largest else min)(given)
        else:
            down = re.search("largest to|high to|descending", question) is not None
            assert numbers(answer) == sorted(given, reverse=down)


def test_extraction() -> None:
    sizes: set[int] = set()
    for question, answer in exchanges("extraction"):
        found = json.loads(answer)
        sizes.add(len(found))
        for key, value in found.items():
            assert re.search(rf"\b{key}\b", question), (key, question)
            assert str(value) in question
        # The answer has exactly the requested fields, in the requested order.
        assert re.search(r"(, | and )".join([rf"\b{key}\b" for key in found]), question), question
    assert sizes == {2, 3, 4}


def test_retrieval() -> None:
    for row in SyntheticRows(4, 120, mixture={"retrieval": 1}):
        pairs = listed(str(row["messages"][0]["content"]))
        for asked, said in zip(row["messages"][::2], row["messages"][1::2], strict=True):
            question = str(asked["content"]).split("\n")[-1]
            keys = [word for word in re.findall(r"\w+", question) if word in pairs]
            noun = re.findall("code|number|value", str(said["content"]))[0]
            assert said["content"] == " ".join(f"The {noun} of {key} is {pairs[key]}." for key in keys)
    for item in held_out("retrieval", 20):
        content = str(item.messages[0]["content"])
        keys = [word for word in re.findall(r"\w+", content.split("\n")[-1]) if word in listed(content)]
        assert re.fullmatch(rf"The (code|number|value) of {keys[0]} is {listed(content)[keys[0]]}\.", item.answer)
        assert len(keys) == 1


def test_copying() -> None:
    lengths: set[int] = set()
    for question, answer in exchanges("copying", 100):
        assert question.split(": ", 1)[1] == answer
        lengths.add(len(answer.split()))
    assert lengths >= {2, 3, 5} and 15 < max(lengths) <= 24


def test_tools() -> None:
    for row in SyntheticRows(4, 200, mixture={"tools": 1}):
        offered = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}  # pyright: ignore
        last = ""
        for message in row["messages"]:
            if message["role"] == "user":
                last = str(message["content"])
            for call in message.get("tool_calls", ()):  # pyright: ignore[reportGeneralTypeIssues]
                arguments = call["function"]["arguments"]
                schema = offered[call["function"]["name"]]
                assert list(arguments) == schema["required"] == list(schema["properties"])
                for name, value in arguments.items():
                    assert str(value) in last
                    assert {"string": str, "integer": int}[schema["properties"][name]["type"]] is type(value)
            if message["role"] == "tool":
                json.loads(str(message["content"]))


def test_results_of_tools_are_told() -> None:
    told = 0
    for row in SyntheticRows(4, 200, mixture={"tools": 1}):
        for result, reply in zip(row["messages"], row["messages"][1:], strict=False):
            if result["role"] == "tool":
                values = json.loads(str(result["content"]))
                told += "status" not in values
                assert all(str(v) in str(reply["content"]) for k, v in values.items() if k != "status")
    assert told > 50


def test_stories_and_names() -> None:
    for question, answer in exchanges("stories", 100):
        animal, thing = re.findall(r"\ban? ([a-z]+)\b", question)[-2:]
        assert animal in answer and thing in answer
        assert not re.search(r"\b[Aa] [aeiou]", answer.replace("a uni", "")) and not re.search(r"\ban [^aeiou]", answer)
        assert 4 <= len(re.findall(r"[.!?]", answer)) <= 8
    for item in held_out("persona", 40):
        name = item.answer.rsplit(" ", 1)[1].rstrip(".")
        assert any(name in str(message["content"]) for message in item.messages)


def test_facts_are_asked_in_one_way_only() -> None:
    questions = [question for asked, _ in FACTS for question in asked]
    assert len(set(questions)) == len(questions)
    assert len({answer for _, answer in FACTS}) == len(FACTS)


@pytest.mark.parametrize("task", HELD_OUT)
def test_checks_take_the_answer_and_nothing_else(task: str) -> None:
    items = held_out(task, 40)
    for item in items:
        assert item.check(item.answer) and item.check(f" {item.answer}\n")
        for wrong in ("", "no", item.answer[:-1], item.answer + " 1"):
            assert not item.check(wrong), (item.answer, wrong)
        # A story is free text: only its two words and its end are checked.
        assert item.check(f"It is {item.answer}") == (task == "stories")
    assert any(not item.check(other.answer) for item in items for other in items) or task == "small_talk"


def only(task: str, fits: Callable[[HeldOut], bool]) -> HeldOut:
    return next(item for item in held_out(task, 200) if fits(item))


def test_checks_of_json() -> None:
    item = only("extraction", lambda item: '"quantity"' in item.answer and '"price"' in item.answer)
    found = json.loads(item.answer)
    assert item.check(json.dumps(dict(reversed(found.items())), indent=2))
    for wrong in (
        {**found, "quantity": str(found["quantity"])},
        {**found, "quantity": float(found["quantity"])},
        {**found, "more": 1},
        {key: value for key, value in found.items() if key != "price"},
        [found],
    ):
        assert not item.check(json.dumps(wrong))
    assert not item.check(item.answer.replace('"', "'")) and not item.check(f"Here it is: {item.answer}")
    assert not item.check("[" * 100_000)


def test_checks_of_calls() -> None:
    item = only("tools", lambda item: "set_timer" in item.answer)
    minutes = numbers(item.answer)[0]
    arguments = f'"arguments": {{"minutes": {minutes}}}'
    assert item.check(f'<tool_call>{{{arguments}, "name": "set_timer"}}</tool_call>')
    for wrong in (
        f'{{"name": "set_timer", {arguments}}}',
        f'<tool_call>{{"name": "get_time", {arguments}}}</tool_call>',
        f'<tool_call>{{"name": "set_timer", "arguments": {{"minutes": {minutes + 1}}}}}</tool_call>',
        f'<tool_call>{{"name": "set_timer", "arguments": {{"minutes": "{minutes}"}}}}</tool_call>',
        f'<tool_call>{{"name": "set_timer", {arguments}, "id": 1}}</tool_call>',
        f"{item.answer}{item.answer}",
        "<tool_call>null</tool_call>",
        "<tool_call></tool_call>",
    ):
        assert not item.check(wrong), wrong
