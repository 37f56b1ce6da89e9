"""Rebuilds the tokenizer and the chat template of a GGUF file from its metadata, through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

from ryzjax.data.tokenizer_files import TokenizerFiles
from ryzjax.errors import CheckpointError
from ryzjax.gguf_header import read_gguf_header

if TYPE_CHECKING:
    import tokenizers

__all__ = ["read_gguf_tokenizer"]

_SPECIAL_TOKENS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "pad_token": "padding_token_id",
}


def read_gguf_tokenizer(path: Path) -> tuple[tokenizers.Tokenizer, TokenizerFiles]:
    """Returns the tokenizer of a GGUF file, and the contents of the small files that a model directory would have.

    Raises:
      CheckpointError: the file has no tokenizer, or its kind of tokenizer cannot be rebuilt.
    """
    # Imported here because it takes a second and only GGUF files need it. Its own reader of GGUF files needs torch.
    from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_TOKENIZER_MAPPING, convert_gguf_tokenizer

    try:
        metadata = _metadata(path)
        found = {
            group: {name: metadata[f"tokenizer.{key}"] for key, name in keys.items() if f"tokenizer.{key}" in metadata}
            for group, keys in GGUF_TOKENIZER_MAPPING.items()
        }
        vocabulary, config = found["tokenizer"], found["tokenizer_config"]
        tokens = cast("list[str]", vocabulary["tokens"])
        ids = {name: metadata.get(f"tokenizer.ggml.{key}") for name, key in _SPECIAL_TOKENS.items()}
        special = {name: tokens[token] for name, token in ids.items() if isinstance(token, int)}
        backend, _ = convert_gguf_tokenizer(str(metadata.get("general.architecture")), vocabulary)
    # For a damaged or unknown vocabulary, `tokenizers` raises a plain Exception and transformers many others.
    except Exception as error:
        raise CheckpointError(
            f"{path}: its tokenizer cannot be rebuilt ({type(error).__name__}: {error}); expected tokenizer.ggml.* "
            "metadata of a known kind. Convert the model, and put a tokenizer.json beside it"
        ) from error
    template = config.get("chat_template")
    bos, eos = ids["bos_token"], ids["eos_token"]
    return backend, TokenizerFiles(
        special_tokens=special,
        chat_template=template if isinstance(template, str) else None,
        tool_template=None,
        chat_template_name=f"{path}: tokenizer.chat_template",
        # A SentencePiece vocabulary without the flag gets a BOS, as in llama.cpp.
        add_bos_token=bool(config.get("add_bos_token", vocabulary.get("tokenizer_type") == "llama")),
        # With this class, the flag alone decides about BOS, for every kind of vocabulary.
        tokenizer_class="LlamaTokenizer",
        bos_token_id=bos if isinstance(bos, int) else None,
        eos_token_ids=(eos,) if isinstance(eos, int) else (),
    )


def _metadata(path: Path) -> dict[str, object]:
    wanted = ("tokenizer.", "general.architecture")
    return {name: value for name, value in read_gguf_header(path).metadata.items() if name.startswith(wanted)}
