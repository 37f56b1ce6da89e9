"""Chat templates: the text transformers renders, and a sandbox that holds."""

from __future__ import annotations

from pathlib import Path

import pytest

from ryzjax.data.chat import ChatTemplate
from ryzjax.data.template_budget import TemplateLimits
from ryzjax.errors import ConfigError, RequestError
from tests.shared import SHARED, needs_shared

SPECIALS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
USER = [{"role": "user", "content": "Hi"}]
CONVERSATIONS: list[list[dict[str, object]]] = [
    [{"role": "user", "content": "Hi <b> é😀"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": " Again\n"},
    ],
    [
        {"role": "user", "content": "Weather?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [
                {
                    "id": "abcdefghi",
                    "type": "function",
                    "function": {"name": "get_weather", "arguments": {"city": "Zürich", "days": 2}},
                }
            ],
        },
        {"role": "tool", "name": "get_weather", "tool_call_id": "abcdefghi", "content": '{"t": 3}'},
    ],
]
CALL = {"id": "aaaaaaaaa", "type": "function", "function": {"name": "f", "arguments": '{"x": 1, "é": [null]}'}}
OTHER = {"id": "bbbbbbbbb", "type": "function", "function": {"name": "g", "arguments": {}}}
CONVERSATIONS += [
    # Arguments as text, two calls at once, two answers, and an answer to the user after them.
    [
        {"role": "system", "content": "You call <tools>."},
        {"role": "user", "content": "Both, please"},
        {"role": "assistant", "content": "", "tool_calls": [CALL, OTHER]},
        {"role": "tool", "name": "f", "tool_call_id": "aaaaaaaaa", "content": "1"},
        {"role": "tool", "name": "g", "tool_call_id": "bbbbbbbbb", "content": '{"b": "\\n"}'},
        {"role": "assistant", "content": "Done."},
        {"role": "user", "content": "Thanks"},
    ],
    [{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "No."}],
    [
        {"role": "user", "content": [{"type": "text", "text": "a part"}, {"type": "text", "text": "another"}]},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nyes", "reasoning_content": "hm"},
        {"role": "user", "content": "and?"},
    ],
]
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string", "description": "c"}}, "required": ["city"]}
TOOLS = [
    {"type": "function", "function": {"name": "get_weather", "description": 'the "weather"', "parameters": PARAMETERS}}
]


def render(source: str, *, limits: TemplateLimits | None = None, **variables: object) -> str:
    return ChatTemplate(source, special_tokens=SPECIALS, limits=limits).render(USER, **variables)


@needs_shared
@pytest.mark.filterwarnings("ignore")
def test_equals_transformers_on_real_templates():
    from jinja2.exceptions import TemplateError
    from transformers.utils.chat_template_utils import render_jinja_template

    num_equal = 0
    for path in sorted(SHARED.glob("chat_templates/*.jinja")):
        source = path.read_text()
        ours = ChatTemplate(source, special_tokens=SPECIALS)
        for messages in CONVERSATIONS:
            for tools, more in ((None, {}), (TOOLS, {}), (TOOLS, {"enable_thinking": False, "date_string": "1 May"})):
                for prompt in (True, False):
                    try:
                        expected = render_jinja_template(
                            conversations=[messages],
                            tools=tools,
                            chat_template=source,
                            add_generation_prompt=prompt,
                            **SPECIALS,
                            **more,
                        )[0][0]
                    except (TemplateError, TypeError, ValueError):
                        with pytest.raises(RequestError):
                            ours.render(messages, tools=tools, add_generation_prompt=prompt, **more)
                        continue
                    rendered = ours.render(messages, tools=tools, add_generation_prompt=prompt, **more)
                    assert rendered == expected, path.name
                    num_equal += 1
    assert num_equal > 300


def test_what_templates_rely_on():
    assert render("{{ bos_token }}{{ messages[0]['role'] }}") == "<s>user"
    assert render("{%- for m in messages %}\n  {{- m.content }}\n{%- endfor %}") == "Hi"
    assert render("{{ {'a': '<é&>', 'b': [1, None, true]} | tojson }}") == '{"a": "<é&>", "b": [1, null, true]}'
    assert render("{{ {'a': 1} | tojson(indent=2) }}") == '{\n  "a": 1\n}'
    assert render("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "012"
    assert render("{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = 5 %}{% endfor %}{{ ns.n }}") == "5"
    assert render("{% generation %}x{{ messages[0].content ~ 1 ~ none }}{% endgeneration %}") == "xHi1None"
    assert render("{% for x in [1, 2, 3, 4] if x is odd %}{{ loop.index }}{{ x }}{% else %}-{% endfor %}") == "1123"
    assert render("{% macro f(x) %}[{{ x }}]{% endmacro %}{{ f(1) }}{{ f('b') }}") == "[1][b]"
    assert render("{{ '{}-{n}'.format(1, n='b') }}") == "1-b"
    assert render("{{ strftime_now('%Y') | int > 2000 }}") == "True"
    assert (
        render("{{ tools is none }}{{ documents is none }}{{ enable_thinking }}", enable_thinking=False)
        == "TrueTrueFalse"
    )
    assert (
        render("{{ ['a', 'b'] | join(', ') }}{{ 'a-b' | replace('-', '+') }}{{ 'a-b'.replace('-', '') }}")
        == "a, ba+bab"
    )
    assert (
        render("{{ messages | map(attribute='role') | join('|') }}{{ 'x' * 3 }}{{ 2 ** 3 }}{{ 7 % 4 }}") == "userxxx83"
    )


def test_template_refusals_reach_the_caller():
    with pytest.raises(RequestError, match="only odd turns please") as error:
        render("{{ raise_exception('only odd turns please') }}")
    assert error.value.param == "messages"
    with pytest.raises(RequestError, match="TypeError"):
        render("{{ 'a' + 1 }}")
    with pytest.raises(RequestError, match="has no attribute 'nothing'"):
        render("{{ messages[0].nothing.at_all }}")
    with pytest.raises(RequestError, match="messages is empty"):
        ChatTemplate("x").render([])


def test_bad_templates():
    for source in ("{% if %}", "{{ a", "{% unknown %}", "{{ 'x' | no_such_filter }}"):
        with pytest.raises(ConfigError, match="not a valid Jinja template"):
            ChatTemplate(source)
    with pytest.raises(ConfigError, match="expected at most"):
        ChatTemplate("x" * 2_000_000)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ dict.__globals__ }}",
        "{{ (''|attr('format_map')).__self__ }}",
        "{{ '{0.__class__}'.format(messages) }}",
        "{{ (messages | map(attribute='__class__') | list)[0].mro() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ namespace(__class__=1) }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os }}",
        "{{ lipsum.__globals__ }}",
        "{{ cycler.__init__ }}",
    ],
)
def test_no_way_out_of_the_sandbox(source: str):
    try:
        text = render(source)
    except (RequestError, ConfigError):
        return
    assert text == "" or "[]" in text, text


NESTED = "{% set ns = namespace(s=[]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}"
"""A list small in memory, and endless as text."""


@pytest.mark.parametrize(
    "source",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% for i in range(99999) if false %}{% endfor %}" * 15,
        "{% for i in range(10000000000) %}{% endfor %}",
        "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
        "{{ 'x' * 10000000000 }}",
        "{{ 10000000000 * 'x' }}",
        "{{ [0] * 10000000000 }}",
        "{{ 9 ** 9 ** 99 }}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('a', ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s|replace('a', ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s]|join(ns.s) %}{% endfor %}",
        "{% set ns = namespace(s='ab') %}{% for i in range(60) %}{% set ns.s = ns.s.join([ns.s, ns.s]) %}{% endfor %}",
        NESTED + "{{ ns.s }}",
        NESTED + "{{ ns.s|tojson }}",
        NESTED + "{{ '' ~ ns.s }}",
        NESTED + "{{ ns.s|upper }}",
        "{% set ns = namespace(n=3) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{{ 'x'.center(10000000000) }}",
        "{{ 'x'.ljust(10000000000) }}",
        "{{ '{:>10000000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 10000000000) }}",
        "{{ ('{}' * 100000).format('x' * 1000000) }}",
        NESTED + "{{ '{}'.format(ns.s) }}",
        "{{ '%10000000000d' % 1 }}",
        "{{ 'x\\ny' | indent(10000000000) }}",
        "{{ [1] | tojson(indent=10000000000) }}",
        "{{ range(99999) | join('x' * 1000000) }}",
        "{{ 'x' * 1000000 }}" * 20,
    ],
)
def test_no_template_runs_or_grows_for_ever(source: str):
    with pytest.raises(RequestError):
        render(source, limits=TemplateLimits(time_s=1.0))


def test_limits_are_per_rendering():
    template = ChatTemplate("{% for i in range(600) %}x{% endfor %}", limits=TemplateLimits(max_loop_passes=1000))
    assert template.render(USER) == template.render(USER) == "x" * 600
    with pytest.raises(RequestError, match="more than 1000 times"):
        render("{% for i in range(1001) %}{% endfor %}", limits=TemplateLimits(max_loop_passes=1000))
    with pytest.raises(RequestError, match="at most 50"):
        render("{{ messages[0].content * 26 }}", limits=TemplateLimits(max_chars=50))
    with pytest.raises(RequestError, match="longer than 0 s"):
        render("{% for i in range(9) %}{% endfor %}", limits=TemplateLimits(time_s=0.0))


def test_only_plain_data_goes_in():
    with pytest.raises(RequestError, match="holds a PosixPath"):
        ChatTemplate("x").render([{"role": "user", "content": Path("/")}])
    deep: list[object] = []
    for _ in range(100):
        deep = [deep]
    with pytest.raises(RequestError, match="nested deeper"):
        ChatTemplate("x").render([{"role": "user", "content": deep}])
    with pytest.raises(RequestError, match=r"\['bos_token', 'documents'\]"):
        ChatTemplate("x", special_tokens=SPECIALS).render(USER, documents=[], bos_token="")


def test_messages_are_not_changed():
    messages = [{"role": "user", "content": ["a"]}]
    with pytest.raises(RequestError):
        ChatTemplate("{{ messages[0].content.append('b') }}").render(messages)
    assert messages == [{"role": "user", "content": ["a"]}]
