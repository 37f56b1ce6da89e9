"""The small files of a tokenizer directory: special tokens, chat templates and end-of-sequence ids."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ryzjax.errors import CheckpointError, ConfigError

__all__ = ["TokenizerFiles", "read_template_file"]

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_MAX_BYTES = 100_000_000


@dataclass(frozen=True, kw_only=True)
class TokenizerFiles:
    """The parsed small files of a tokenizer directory. Any of the files may be missing.

    Attributes:
      special_tokens: the text of each special token by its role, such as `bos_token` -> "<s>".
      chat_template: Jinja text, or None.
      tool_template: Jinja text of a separate template for requests with tools, or None.
      chat_template_name: the file that the templates come from, for error messages.
      add_bos_token: `add_bos_token` of tokenizer_config.json, or None if it is missing.
      tokenizer_class: `tokenizer_class` of tokenizer_config.json, or "" if it is missing.
      bos_token_id: `bos_token_id` of generation_config.json or, without it, config.json.
      eos_token_ids: `eos_token_id` of generation_config.json or, without it, config.json.
    """

    special_tokens: Mapping[str, str]
    chat_template: str | None
    tool_template: str | None
    chat_template_name: str
    add_bos_token: bool | None
    tokenizer_class: str
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]

    @classmethod
    def read(cls, directory: Path) -> TokenizerFiles:
        """Reads the files that exist.

        Raises:
          CheckpointError: a file is not readable JSON, or a value has the wrong type.
        """
        config = _read(directory / "tokenizer_config.json")
        special = _read(directory / "special_tokens_map.json")
        tokens: dict[str, str] = {}
        for name in _SPECIAL_TOKENS:
            token = _token_text(config.get(name)) or _token_text(special.get(name))
            if token is not None:
                tokens[name] = token
        templates, template_name = _chat_templates(directory, config)
        generation, model = _read(directory / "generation_config.json"), _read(directory / "config.json")
        bos = _ids(generation.get("bos_token_id")) or _ids(model.get("bos_token_id"))
        add_bos = config.get("add_bos_token")
        return cls(
            special_tokens=tokens,
            chat_template=templates.get("default"),
            tool_template=templates.get("tool_use"),
            chat_template_name=template_name,
            add_bos_token=add_bos if isinstance(add_bos, bool) else None,
            tokenizer_class=str(config.get("tokenizer_class") or ""),
            bos_token_id=bos[0] if bos else None,
            eos_token_ids=_ids(generation.get("eos_token_id")) or _ids(model.get("eos_token_id")),
        )


def read_template_file(path: str | Path) -> str:
    """Returns the Jinja text of a file.

    Raises:
      ConfigError: the file cannot be read.
    """
    try:
        return Path(path).expanduser().read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"chat template {str(path)!r} cannot be read ({error}); expected Jinja text") from error


def _chat_templates(directory: Path, config: Mapping[str, object]) -> tuple[Mapping[str, str], str]:
    """Returns the templates by name, and the file they come from.

    The order is that of transformers: chat_template.jinja together with additional_chat_templates/, then
    chat_template.json, then tokenizer_config.json. A single template is named "default".
    """
    more = {file.stem: read_template_file(file) for file in sorted(directory.glob("additional_chat_templates/*.jinja"))}
    jinja = directory / "chat_template.jinja"
    if jinja.is_file():
        return {**more, "default": read_template_file(jinja)}, str(jinja)
    for path, raw in (
        (directory / "chat_template.json", _read(directory / "chat_template.json")),
        (directory / "tokenizer_config.json", config),
    ):
        template = raw.get("chat_template")
        if isinstance(template, str):
            return {**more, "default": template}, str(path)
        if isinstance(template, list):
            return {**more, **dict(_named(path, item) for item in template)}, str(path)
    return more, str(directory / "additional_chat_templates")


def _named(path: Path, item: object) -> tuple[str, str]:
    name, template = (item.get("name"), item.get("template")) if isinstance(item, dict) else (None, None)
    if not isinstance(name, str) or not isinstance(template, str):
        raise CheckpointError(
            f"{path}: chat_template has the entry {item!r:.100}; expected an object with the strings name and template"
        )
    return name, template


def _token_text(value: object) -> str | None:
    """Returns the text of a special token, which is stored as a string or as an object with `content`."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _ids(value: object) -> tuple[int, ...]:
    items = value if isinstance(value, list) else [value]
    return tuple(item for item in items if isinstance(item, int) and not isinstance(item, bool))


def _read(path: Path) -> dict[str, object]:
    if not path.is_file():
        return {}
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise CheckpointError(f"{path}: larger than {_MAX_BYTES} bytes; expected a small JSON file")
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error}); download it again") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: holds a {type(value).__name__}; expected a JSON object")
    return value
