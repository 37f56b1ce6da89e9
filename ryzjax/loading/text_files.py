"""Copies the files of a model that are not weights: tokenizer, chat templates, generation settings and licence."""

from __future__ import annotations

import shutil
from pathlib import Path

__all__ = ["copy_text_files"]

_TEXT_PATTERNS = ("generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json")
_MORE_PATTERNS = ("merges.txt", "chat_template*", "LICENSE*", "additional_chat_templates/*.jinja")


def copy_text_files(origin: Path, folder: Path) -> None:
    """Copies a model's tokenizer, chat templates, generation settings and licence.

    Args:
      origin: The model's directory.
      folder: The directory to copy to; it must exist.
    """
    for pattern in (*_TEXT_PATTERNS, *_MORE_PATTERNS):
        for file in origin.glob(pattern):
            if file.is_file():
                target = folder / file.relative_to(origin)
                target.parent.mkdir(exist_ok=True)
                shutil.copyfile(file, target)
