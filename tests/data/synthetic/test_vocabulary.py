"""The demo model's tokenizer and chat template, against transformers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from ryzjax.data.synthetic import ChatRow, SyntheticRows, held_out
from ryzjax.data.synthetic.lengths import count_pieces
from ryzjax.data.synthetic.vocabulary import SPECIAL_TOKENS, train_tokenizer, write_tokenizer
from ryzjax.data.synthetic.words import CITIES, FIRST_NAMES, KEYS
from ryzjax.data.tokenizer import Tokenizer
from ryzjax.errors import ConfigError, RequestError

VOCAB_SIZE = 2600
ODD_TEXTS = [
    "",
    " ",
    "\n\n  \t\r\n",
    "Zoë, Łukasz & Nguyễn Văn: 日本語 🦊👩‍👩‍👧 עברית",
    "x" * 300,
    "e\u0301 \u200b \u00a0 \ufeff",
    "½ ² ٣ Ⅷ 12345",
    '{"a":[1,2.5,null]}',
    "_snake_case__ -- <|im_end> </tool_call",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_tokenizer(folder, train_tokenizer(SyntheticRows(0, 1500), vocab_size=VOCAB_SIZE), max_tokens=4096)
    return folder


@pytest.fixture(scope="module")
def tokenizer(folder: Path) -> Tokenizer:
    return Tokenizer.load(folder)


@pytest.fixture(scope="module")
def reference(folder: Path) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(str(folder))


@pytest.fixture(scope="module")
def rows() -> list[ChatRow]:
    return list(SyntheticRows(9, 120)) + list(SyntheticRows(9, 30, mixture={"tools": 1, "persona": 1}))


def test_odd_texts_come_back(tokenizer: Tokenizer, reference: PreTrainedTokenizerFast) -> None:
    for text in ODD_TEXTS:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids, skip_special_tokens=False) == text
        assert reference(text)["input_ids"] == ids


@given(st.text())
def test_any_text_comes_back(tokenizer: Tokenizer, text: str) -> None:
    try:
        ids = tokenizer.encode(text)
    except RequestError:
        return  # lone surrogates
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_tokens(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == VOCAB_SIZE
    assert [tokenizer.encode(token) for token in SPECIAL_TOKENS] == [[0], [1], [2]]
    assert tokenizer.eos_token_ids == (2, 0) and tokenizer.bos_token_id is None
    digits = {tokenizer.encode(digit)[0] for digit in "0123456789"}
    assert len(digits) == 10
    assert [token in digits for token in tokenizer.encode("1234567890")] == [True] * 10
    for words, before in ((KEYS, (" ",)), (FIRST_NAMES, (" ", "")), (CITIES, (" ", ""))):
        assert [word for word in words for space in before if len(tokenizer.encode(space + word)) > 1] == []


def test_calls_stay_in_the_text(tokenizer: Tokenizer) -> None:
    call = "<tool_call>\n{}\n</tool_call>"
    ids = tokenizer.encode(f"{call}<|im_end|>")
    assert len(ids) == 7 and ids[-1] == 2 and tokenizer.decode(ids) == call


def test_the_same_rows_give_the_same_tokenizer(folder: Path) -> None:
    again = train_tokenizer(SyntheticRows(0, 1500), vocab_size=VOCAB_SIZE).to_str(pretty=True)
    assert json.loads(again) == json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))


def test_a_vocabulary_without_room() -> None:
    with pytest.raises(ConfigError, match="vocab_size=100 is out of range; expected at least 261"):
        train_tokenizer([], vocab_size=100)


def test_prompts_are_those_of_transformers(
    tokenizer: Tokenizer, reference: PreTrainedTokenizerFast, rows: list[ChatRow]
) -> None:
    for row in rows:
        tools = row.get("tools")
        ids = reference.apply_chat_template(row["messages"], tools=tools, return_dict=False)
        assert tokenizer.apply_chat_template(row["messages"], tools=tools, add_generation_prompt=False) == ids
    for item in held_out("tools", 10) + held_out("persona", 10):
        asked = reference.apply_chat_template(
            list(item.messages), tools=item.tools, add_generation_prompt=True, tokenize=False
        )
        assert tokenizer.render_chat(item.messages, tools=item.tools) == asked


def test_what_is_trained_on_is_that_of_transformers(
    tokenizer: Tokenizer, reference: PreTrainedTokenizerFast, rows: list[ChatRow]
) -> None:
    template = tokenizer.chat_template
    assert template is not None
    for row in rows:
        tools = row.get("tools")
        found = reference.apply_chat_template(
            row["messages"], tools=tools, return_dict=True, return_assistant_tokens_mask=True
        )
        kept = [token for token, mask in zip(found["input_ids"], found["assistant_masks"], strict=True) if mask]
        marked = template.render_marked(row["messages"], tools=tools)
        texts = [marked.text[start:end] for start, end in marked.spans]
        assert tokenizer.decode(kept, skip_special_tokens=False) == "".join(texts)
        answers = [message for message in row["messages"] if message["role"] == "assistant"]
        assert len(texts) == len(answers)
        for text, answer in zip(texts, answers, strict=True):
            assert text.endswith("<|im_end|>")
            if not answer.get("tool_calls"):
                assert text == f"{answer['content']}<|im_end|>"


def test_a_held_out_call_is_what_training_renders(tokenizer: Tokenizer) -> None:
    template = tokenizer.chat_template
    assert template is not None
    item = held_out("tools", 1)[0]
    call = json.loads(item.answer.removeprefix("<tool_call>").removesuffix("</tool_call>"))
    # The OpenAI API gives arguments as text.
    for arguments in (call["arguments"], json.dumps(call["arguments"], ensure_ascii=False)):
        function = {"name": call["name"], "arguments": arguments}
        said = {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": function}]}
        marked = template.render_marked([*item.messages, said], tools=item.tools)
        ((start, end),) = marked.spans
        assert marked.text[start:end] == f"{item.answer}<|im_end|>"


def test_parts_and_bare_schemas(tokenizer: Tokenizer) -> None:
    parts = [{"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "text", "text": "there"}]}]
    whole = tokenizer.render_chat([{"role": "user", "content": "Hi there"}])
    assert tokenizer.render_chat(parts) == whole == "<|im_start|>user\nHi there<|im_end|>\n<|im_start|>assistant\n"
    bare = {"name": "get_time", "parameters": {}}
    system = [{"role": "system", "content": "Be kind."}, *parts]
    text = tokenizer.render_chat(system, tools=[bare])
    assert text.startswith('<|im_start|>system\nBe kind.\n\nTools:\n{"name": "get_time", "parameters": {}}<|im_end|>\n')
    assert tokenizer.render_chat(system, tools=[{"type": "function", "function": bare}]) == text


def test_an_unknown_role_is_refused(tokenizer: Tokenizer) -> None:
    with pytest.raises(RequestError, match='role "critic" is not one of system, user, assistant, tool'):
        tokenizer.render_chat([{"role": "critic", "content": "no"}])


def test_pieces_are_never_more_than_tokens(tokenizer: Tokenizer, rows: list[ChatRow]) -> None:
    for row in rows:
        for message in row["messages"]:
            text = str(message["content"])
            pieces, tokens = count_pieces(text), len(tokenizer.encode(text))
            assert pieces <= tokens <= 1.6 * pieces + 12, text
    for name, least in (("retrieval", 1024), ("retrieval_2k", 1700)):
        for item in held_out(name, 15):
            assert least <= len(tokenizer.apply_chat_template(item.messages)) < 1.3 * least
