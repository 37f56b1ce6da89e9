"""`Tokenizer` turns text into token ids and back, and conversations into prompts.

It reads `tokenizer.json` through the `tokenizers` library, because importing transformers takes more than a second.
Transformers is used only for a directory that has no `tokenizer.json`.
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
"""The most characters that Unicode normalization merges into one: 3 by canonical composition, and a margin."""
_BATCH_TEXTS = 256  # An encoding takes far more memory than its ids. This bounds the number held at once.
_CONVERTIBLE = ("tokenizer.model", "vocab.json", "vocab.txt", "merges.txt", "spiece.model")
_CLASSES_WITH_BOS_FLAG = ("LlamaTokenizer", "LlamaTokenizerFast", "CodeLlamaTokenizer", "CodeLlamaTokenizerFast")
"""Classes whose `add_bos_token` overrides the post-processor of tokenizer.json, as in transformers."""


class Tokenizer:
    """A model's tokenizer. Safe to use from several threads.

    Create one with `load`.

    Attributes:
      special_tokens: the text of each special token by its role, such as `bos_token` -> "<s>".
      chat_template: the model's template for conversations, or None.
      tool_template: the template for conversations with tools if it differs from `chat_template`, otherwise None.
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
          path: a directory with `tokenizer.json` or with files that transformers can convert, or a GGUF file.
          chat_template: a Jinja file that replaces the model's own template.
          special_tokens_in_messages: encode special tokens in messages as tokens instead of as text. The author of a
            message can then end that message and write the next one in any role.

        Raises:
          CheckpointError: `path` has no tokenizer, or the tokenizer cannot be read.
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
        """Writes `tokenizer.json` and `tokenizer_config.json`. `load` makes the same tokenizer from them."""
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
        """The number of tokens, special tokens included. The model's embedding table may have more rows."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def bos_token_id(self) -> int | None:
        """The token that starts a text, or None."""
        return self._bos_token_id

    @property
    def eos_token_ids(self) -> tuple[int, ...]:
        """The tokens that end a text: the tokenizer's own, then those of generation_config.json (or config.json)."""
        return self._eos_token_ids

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Returns the token ids of `text`.

        Args:
          text: any valid Unicode text.
          add_special_tokens: add the special tokens that the model expects around a text, such as BOS. Pass False for
            a rendered chat, which already contains them.

        Raises:
          RequestError: `text` is not a string, or it has lone surrogates, which cannot be encoded as UTF-8.
        """
        _check_text(text)
        if add_special_tokens and self._adds_bos is not None:
            ids = self._encode(text, add_special_tokens=False)
            return [self._bos_token_id, *ids] if self._adds_bos and self._bos_token_id is not None else ids
        return self._encode(text, add_special_tokens=add_special_tokens)

    def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        if self._special_text.is_escaped(text):
            return self._special_text.encode(text, add_special_tokens=add_special_tokens)
        # `backend.encode` holds the GIL until it is done. `encode_batch_fast` releases it, and is faster.
        return self._backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)[0].ids

    def max_chars(self, num_tokens: int) -> int:
        """Returns the most characters that a text of `num_tokens` tokens can have.

        A longer text has more tokens, so it can be refused without being encoded. The bound is the length of the
        longest token for each token, and four times that if the tokenizer has a normalizer, which may shorten the text.
        A text that a normalizer shortens more than that, such as a long run of spaces that it collapses, counts as too
        long.
        """
        per_token = self._longest_token_chars * (1 if self._backend.normalizer is None else _NORMALIZED_CHARS)
        return num_tokens * per_token

    @cached_property
    def _longest_token_chars(self) -> int:
        # A byte-level token is spelled with one character a byte. A text has at most as many characters as bytes.
        return max(map(len, self._backend.get_vocab(with_added_tokens=True)))

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Returns the token ids of each text, as `encode` does. The texts are encoded in parallel, without the GIL.

        Raises:
          RequestError: one of the texts is not valid (see `encode`).
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
        """Returns the token ids of `text`, without special tokens around it, and the characters each token covers.

        Returns:
          The ids, and for each of them a half-open span of characters. Tokens that encode parts of one character share
          the span of that character.

        Raises:
          RequestError: `text` is not valid (see `encode`).
        """
        _check_text(text)
        if self._special_text.is_escaped(text):
            return self._special_text.encode_with_offsets(text)
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Returns the text of token ids. Ids outside the vocabulary (padding of the embedding table) give no text.

        Raises:
          RequestError: an id is not a 32-bit unsigned integer.
        """
        try:
            return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except (OverflowError, TypeError) as error:
            raise RequestError(
                f"token ids contain a value that is not a token id; expected integers from 0 to {_MAX_TOKEN_ID}",
                param="tokens",
            ) from error

    def token_text(self, token_id: int) -> str:
        """Returns the text of one token, special tokens included. A partial character becomes U+FFFD."""
        return self.decode([token_id], skip_special_tokens=False)

    @cached_property
    def special_token_ids(self) -> frozenset[int]:
        """The tokens that are not text: those marked special in the vocabulary, and those that end a text."""
        added = self._backend.get_added_tokens_decoder()
        return frozenset(token_id for token_id, token in added.items() if token.special) | set(self._eos_token_ids)

    @cached_property
    def _special_text(self) -> SpecialText:
        bos = () if self._bos_token_id is None else (self._bos_token_id,)
        return SpecialText(self._backend, {*self.special_token_ids, *bos}, unknown_id=self._id_of("unk_token"))

    def template_for(self, tools: Sequence[Mapping[str, object]] | None) -> ChatTemplate | None:
        """Returns the chat template for a conversation with these tools, or without tools."""
        return self.chat_template if not tools or self.tool_template is None else self.tool_template

    def render_chat(
        self,
        messages: Sequence[Mapping[str, object]],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **variables: object,
    ) -> str:
        """Returns the prompt text of a conversation for people to read. See `ChatTemplate.render`.

        Use `render_prompt` for a text that will be encoded. In this text, a special token that a message contains looks
        like one that the template wrote.

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
        """Returns the prompt text of a conversation for this tokenizer to encode.

        Special tokens inside messages or tools are escaped, so that `encode` reads them as text. Arguments and errors
        are those of `render_chat`.
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
        """Returns the text of `render_prompt` without a generation prompt, and the spans that the assistant writes."""
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
        """Returns the token ids of a conversation: `render_prompt`, then `encode` without further special tokens.

        Raises:
          RequestError: the model has no chat template, or the template or the tokenizer refuses the messages.
        """
        text = self.render_prompt(messages, tools=tools, add_generation_prompt=add_generation_prompt, **variables)
        # The template writes BOS itself; adding it again would double it.
        return self.encode(text, add_special_tokens=False)

    def _template(self, tools: Sequence[Mapping[str, object]] | None) -> ChatTemplate:
        template = self.template_for(tools)
        if template is None:
            raise RequestError(
                "the model has no chat template, so messages cannot be turned into a prompt; "
                "use /v1/completions (or generate) with plain text, or start with --chat-template FILE",
                param="messages",
            )
        return template

    def _escaped(self, value: Json) -> Json:
        """Escapes special tokens in a JSON value, unless special tokens in messages are read as tokens."""
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
    # Imported here so that `import ryzjax.data` stays light.
    from tokenizers import Tokenizer as Backend

    try:
        backend = Backend.from_file(str(path))
    # The library raises a plain Exception for every error.
    except Exception as error:
        raise CheckpointError(
            f"{path}: this version of tokenizers cannot read the file ({error}); download it again"
        ) from error
    # A tokenizer that a training script saved may have truncation turned on. Prompts are never cut silently.
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
