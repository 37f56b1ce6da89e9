"""The demo model's tokenizer: byte-level BPE learned from rows, with single digits and a ChatML template with tools."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ryzjax.data.chat import ChatTemplate
from ryzjax.data.synthetic.exchange import ChatRow
from ryzjax.data.synthetic.lengths import PIECE_PATTERN
from ryzjax.data.synthetic.words import CITIES, COLORS, FIRST_NAMES, KEYS, LAST_NAMES, MONTHS, PRODUCTS
from ryzjax.errors import ConfigError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["CHAT_TEMPLATE", "SPECIAL_TOKENS", "train_tokenizer", "write_tokenizer"]

CHAT_TEMPLATE = (Path(__file__).parent / "chat_template.jinja").read_text(encoding="utf-8")
"""ChatML with the roles system, user, assistant and tool. Generation blocks mark the assistant's text."""

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
"""The special tokens with ids 0, 1 and 2: padding and end of plain text, start of a turn, and end of a turn."""

_PLAIN_TOKENS = ("<tool_call>", "</tool_call>")
"""These are one token each, but part of the text that a caller sees, as in Qwen and Hermes."""
_SAMPLING = {"do_sample": True, "temperature": 0.7, "top_p": 0.9}
"""The sampling defaults of the model. Each task has one right answer, so the tail of the distribution is cut. A request
for the likeliest answer sets temperature 0."""
_NUM_BYTES = 256
_WORD_REPEATS = 300


def train_tokenizer(rows: Iterable[ChatRow], *, vocab_size: int) -> tokenizers.Tokenizer:
    """Learns the merges from rows rendered by the chat template. The same rows give the same tokenizer.

    Args:
      rows: a sample of the training rows. A few thousand are enough.
      vocab_size: the number of tokens. Rows with few different words may give fewer.

    Raises:
      ConfigError: `vocab_size` is too small for the bytes and the special tokens.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    least = _NUM_BYTES + len(SPECIAL_TOKENS) + len(_PLAIN_TOKENS)
    if vocab_size < least:
        raise ConfigError(f"vocab_size={vocab_size} is out of range; expected at least {least}, the bytes and specials")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE_PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(_PLAIN_TOKENS),
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(itertools.chain(_texts(rows), _words()), trainer)
    # Added after training, because all tokens given to a trainer are special, and these must stay in decoded text.
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in _PLAIN_TOKENS])
    return tokenizer


def write_tokenizer(folder: Path, tokenizer: tokenizers.Tokenizer, *, max_tokens: int) -> None:
    """Writes tokenizer.json, tokenizer_config.json, chat_template.jinja and generation_config.json.

    Args:
      folder: an existing folder.
      tokenizer: a tokenizer made by `train_tokenizer`.
      max_tokens: the longest text of the model, in tokens.
    """
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    end_of_text, _, end_of_turn = SPECIAL_TOKENS
    config: dict[str, object] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": end_of_turn,
        "pad_token": end_of_text,
        "model_max_length": max_tokens,
        "clean_up_tokenization_spaces": False,
    }
    generation: dict[str, object] = {
        "eos_token_id": [tokenizer.token_to_id(end_of_turn), tokenizer.token_to_id(end_of_text)],
        "pad_token_id": tokenizer.token_to_id(end_of_text),
        **_SAMPLING,
    }
    for name, values in (("tokenizer_config.json", config), ("generation_config.json", generation)):
        (folder / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def _words() -> Iterator[str]:
    """Yields the words that answers copy from questions, often enough for each to become one token.

    A model copies one token more reliably than several, and the tokens of a word may differ after a space and after a
    quote.
    """
    behind_space = (*KEYS, *FIRST_NAMES, *LAST_NAMES, *CITIES, *PRODUCTS, *COLORS, *MONTHS)
    alone = (*FIRST_NAMES, *CITIES, *PRODUCTS, *COLORS)
    for word in (*(f" {word}" for word in behind_space), *alone):
        yield from itertools.repeat(word, _WORD_REPEATS)


def _texts(rows: Iterable[ChatRow]) -> Iterator[str]:
    """Yields rendered rows, cut at special tokens, so that no merge is learned from their letters."""
    template = ChatTemplate(CHAT_TEMPLATE, name="chat template of the demo model")
    cut = re.compile("|".join(map(re.escape, (*SPECIAL_TOKENS, *_PLAIN_TOKENS))))
    for row in rows:
        text = template.render(row["messages"], tools=row.get("tools"), add_generation_prompt=False)
        yield from (part for part in cut.split(text) if part)
