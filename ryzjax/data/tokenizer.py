"""Tokenizer: text to token ids and back, and conversations to prompts.

Reads `tokenizer.json` through the `tokenizers` library directly: importing transformers costs more than a second of
start-up. Only a directory without that file takes the way through transformers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from ryzjax.data.chat import ChatTemplate, MarkedText
from ryzjax.data.special_text import SpecialText
from ryzjax.data.tokenizer_files import TokenizerFiles, read_template_file
from ryzjax.errors import CheckpointError, RequestError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["Tokenizer"]

Json = TypeVar("Json")

_MAX_TOKEN_ID = 2**32 - 1
_NORMALIZED_CHARS = 4
"""Characters that a Unicode normalization may make one character of (canonical composition: 3, and a margin)."""
_BATCH_TEXTS = 256  # an encoding holds much more than its ids: this bounds how many there are at once
_CONVERTIBLE = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model")
_CLASSES_WITH_BOS_FLAG = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")
"""Classes whose `add_bos_token` overrules the post-processor of tokenizer.json, as it does in transformers."""


class Tokenizer:
    """A model's tokenizer. Safe to use from several threads.

    Build it with `load`.

    Attributes:
      special_tokens: such as `bos_token` -> "<s>".
      chat_template: how the model wants conversations, or None.
      tool_template: how it wants those with tools, where that differs; else None.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        files: TokenizerFiles,
        *,
        chat_template: ChatTemplate | None,
        tool_template: ChatTemplate | None,
        name: str,
        special_tokens_in_messages: bool = False,
    ):
        self._backend = backend
        self._files = files
        self._name = name
        self.special_tokens = files.special_tokens
        self.chat_template = chat_template
        self.tool_template = tool_template
        bos = self._id_of("bos_token")
        self._bos_token_id = files.bos_token_id if bos is None else bos
        eos = self._id_of("eos_token")
        own = () if eos is None else (eos,)
        self._eos_token_ids = tuple(dict.fromkeys((*own, *files.eos_token_ids)))
        self._adds_bos = files.add_bos_token if files.tokenizer_class in _CLASSES_WITH_BOS_FLAG else None
        self._escapes = not special_tokens_in_messages

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        chat_template: str | Path | None = None,
        special_tokens_in_messages: bool = False,
    ) -> Tokenizer:
        """Loads the tokenizer of a model.

        Args:
          path: directory with `tokenizer.json` (or files transformers can convert), or a GGUF file.
          chat_template: Jinja file that replaces the model's own template.
          special_tokens_in_messages: read special tokens that are written in messages as tokens, and not as text.
            Whoever writes a message can then end it and write the next one in any role.

        Raises:
          CheckpointError: no tokenizer there, or one that cannot be read.
          ConfigError: the chat template cannot be read or compiled.
        """
        where = Path(path).expanduser()
        if where.suffix == ".gguf" and where.is_file():
            from ryzjax.data.gguf_tokenizer import read_gguf_tokenizer

            backend, files = read_gguf_tokenizer(where)
        elif where.is_dir():
            files = TokenizerFiles.read(where)
            backend = _load_backend(where)
        else:
            raise CheckpointError(f"tokenizer {str(path)!r}: no such directory; expected one with tokenizer.json")
        sources, name = (files.chat_template, files.tool_template), files.chat_template_name
        if chat_template is not None:
            sources, name = (read_template_file(chat_template), None), str(chat_template)
        plain, tool = (
            None
            if source is None
            else ChatTemplate(source, name=f"chat template of {name}", special_tokens=files.special_tokens)
            for source in sources
        )
        return cls(
            backend,
            files,
            chat_template=plain,
            tool_template=tool,
            name=str(where),
            special_tokens_in_messages=special_tokens_in_messages,
        )

    def save(self, directory: Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`, from which `load` makes the same tokenizer."""
        self._backend.save(str(directory / "tokenizer.json"))
        config: dict[str, object] = {**self.special_tokens, "tokenizer_class": self._files.tokenizer_class}
        if self._files.add_bos_token is not None:
            config["add_bos_token"] = self._files.add_bos_token
        named = {"default": self._files.chat_template, "tool_use": self._files.tool_template}
        config["chat_template"] = [{"name": k, "template": v} for k, v in named.items() if v is not None]
        text = json.dumps(config, indent=1, ensure_ascii=False)
        (directory / "tokenizer_config.json").write_text(text, encoding="utf-8")

    @property
    def vocab_size(self) -> int:
        """Tokens it knows, special ones included; a model's table may be larger."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        """The token texts begin with, or None."""
        return self._bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a text: the tokenizer's own, then those of generation_config.json (or else config.json)."""
        return self._eos_token_ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of `text`.

        Args:
          text: any valid Unicode text.
          add_special_tokens: add what the model expects around a text (such as BOS). False for rendered chats.

        Raises:
          RequestError: not a string, or one with lone surrogates, which no UTF-8 tokenizer can read.
        """
        _check_text(text)
        if add_special_tokens and self._adds_bos is not None:
            ids = self._encode(text, add_special_tokens=False)
            return [self._bos_token_id, *ids] if self._adds_bos and self._bos_token_id is not None else ids
        return self._encode(text, add_special_tokens=add_special_tokens)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if self._special_text.is_escaped(text):
            return self._special_text.encode(text, add_special_tokens=add_special_tokens)
        # `encode` would hold Python's interpreter lock until it is done; this lets other threads run, and is faster.
        return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def max_chars(self, num_tokens: int) -> int:
        """Most characters of a text of so many tokens. A longer text has more tokens, so it need not be encoded.

        It is the length of the longest token for each token, and four times that where a normalizer may shorten the
        text. A text that a normalizer shortens more than that, such as a long run of spaces that it collapses, counts
        as too long.
        """
        per_token = self._longest_token_chars * (1 if self._backend.normalizer is None else _NORMALIZED_CHARS)
        return num_tokens * per_token

    @cached_property
    def _longest_token_chars(self) -> int:
        # A byte-level token is spelt with a character for each byte, of which a text has at most as many characters.
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)))

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text, as `encode` gives them; the texts are encoded in parallel, without the GIL.

        Raises:
          RequestError: as `encode`, of any of the texts.
        """
        for text in texts:
            _check_text(text)
        bos: list[int] = []
        if add_special_tokens and self._adds_bos is not None:
            add_special_tokens = False
            if self._adds_bos and self._bos_token_id is not None:
                bos = [self._bos_token_id]
        encoded: list[list[int]] = []
        for start in range(0, len(texts), _BATCH_TEXTS):
            some = list(texts[start : start + _BATCH_TEXTS])
            encodings = self._backend.encode_batch_fast(some, add_special_tokens=add_special_tokens)
            for text, encoding in zip(some, encodings, strict=True):
                is_escaped = self._special_text.is_escaped(text)
                ids = self._encode(text, add_special_tokens=add_special_tokens) if is_escaped else encoding.ids
                encoded.append([*bos, *ids])
        return encoded

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text` without special tokens around it, and which characters of it each was made from.

        Returns:
          The ids; and a half-open span of characters a token. Tokens that are parts of one character share its span.

        Raises:
          RequestError: as `encode`.
        """
        _check_text(text)
        if self._special_text.is_escaped(text):
            return self._special_text.encode_with_offsets(text)
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Text of token ids. Ids the tokenizer does not know (padding of the model's table) have no text.

        Raises:
          RequestError: an id that is no 32-bit unsigned integer.
        """
        try:
            return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise RequestError(
                f"token ids hold a value that is not one; expected integers from 0 to {_MAX_TOKEN_ID}", param="tokens"
            ) from error

    def token_text(self, token_id: int) -> str:
        """The text of one token on its own (partial characters as U+FFFD), special tokens included."""
        return self.decode([token_id], skip_special_tokens=False)

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """Tokens that are no text: those marked special in the vocabulary, and those that end a text."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special) | set(self._eos_token_ids)

    @cached_property
    def _special_text(self) -> SpecialText:
        bos = () if self._bos_token_id is None else (self._bos_token_id,)
        return SpecialText(self._backend, {*self.special_token_ids, *bos}, unknown_id=self._id_of("unk_token"))

    def template_for(self, tools: Sequence[Mapping[str, object]] | None) -> ChatTemplate | None:
        """The chat template for conversations with these tools, or with none."""
        return self.chat_template if not tools or self.tool_template is None else self.tool_template

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """The prompt text of a conversation, to be read; see `ChatTemplate.render`.

        To be encoded, take `render_prompt`: in this text, a special token in a message looks like the template's own.

        Raises:
          RequestError: the model has no chat template, or the template refuses the messages.
        """
        template = self._template(tools)
        return template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables)

    def render_prompt(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """As `render_chat`, to be encoded by this tokenizer.

        Special tokens that are written in messages or tools are escaped in it: `encode` reads them as text.
        """
        template = self._template(tools)
        messages, tools = self._escaped(messages), self._escaped(tools)
        return template.render(messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables)

    def render_marked(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        **variables: object,
    ) -> MarkedText:
        """As `render_prompt` without a generation prompt, with the spans of what the assistant writes."""
        template = self._template(tools)
        return template.render_marked(self._escaped(messages), tools=self._escaped(tools), **variables)

    def apply_chat_template(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> list[int]:
        """Token ids of a conversation: `render_prompt`, then `encode` without more special tokens.

        Raises:
          RequestError: as `render_chat` and `encode`.
        """
        text = self.render_prompt(messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables)
        # The template writes BOS itself; adding it again would double it.
        return self.encode(text, add_special_tokens=False)

    def _template(self, tools: Sequence[Mapping[str, object]] | None) -> ChatTemplate:
        template = self.template_for(tools)
        if template is None:
            raise RequestError(
                "the model has no chat template, so messages cannot become a prompt; "
                "use /v1/completions (or generate) with plain text, or start with --chat-template FILE",
                param="messages",
            )
        return template

    def _escaped(self, value: Json) -> Json:
        """A JSON value in which no string forms a special token, unless those are to be read as tokens."""
        return cast("Json", self._special_text.escape(value)) if self._escapes else value

    def _id_of(self, special: str) -> int | None:
        token = self.special_tokens.get(special)
        return None if token is None else self._backend.token_to_id(token)


def _check_text(text: str) -> None:
    if not isinstance(text, str):
        raise RequestError(f"text is a {type(text).__name__}; expected a string", param="prompt")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"text has a lone surrogate {text[error.start]!r} at position {error.start}; send valid Unicode",
            param="prompt",
        ) from error


def _load_backend(directory: Path) -> tokenizers.Tokenizer:
    path = directory / "tokenizer.json"
    if not path.is_file():
        return _convert(directory)
    # Imported here: `import ryzjax.data` stays light.
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(path))
    # The library raises plain Exception, whatever is wrong.
    except Exception as error:
        raise CheckpointError(f"{path}: not a tokenizer this version can read ({error}); download it again") from error
    # A tokenizer saved from a training script may carry its truncation: prompts are never cut silently.
    backend.no_truncation()
    backend.no_padding()
    return backend


def _convert(directory: Path) -> tokenizers.Tokenizer:
    if not any((directory / name).is_file() for name in _CONVERTIBLE):
        raise CheckpointError(f"{directory}: no tokenizer.json; expected a Hugging Face tokenizer beside the model")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        slow = AutoTokenizer.from_pretrained(str(directory), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise CheckpointError(
            f"{directory}: no tokenizer.json, and transformers cannot build one from the other files ({error}); "
            "export tokenizer.json with transformers: save_pretrained(dir)"
        ) from error
    if not isinstance(slow, PreTrainedTokenizerFast):
        raise CheckpointError(
            f"{directory}: tokenizer class {type(slow).__name__} has no fast version; export tokenizer.json"
        )
    return slow.backend_tokenizer
