"""The tokenizer and chat template in a GGUF file's metadata, rebuilt by transformers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ryzjax.data.tokenizer_files import TokenizerFiles
from ryzjax.errors import CheckpointError

if TYPE_CHECKING:
    import tokenizers

__all__ = ["read_gguf_tokenizer"]

_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def read_gguf_tokenizer(path: Path) -> tuple[tokenizers.Tokenizer, TokenizerFiles]:
    """The tokenizer of a GGUF file, and what would lie beside it in a model directory.

    Raises:
      CheckpointError: the file has no tokenizer, or one of a kind that cannot be rebuilt.
    """
    # Imported here: it takes a second, and only GGUF files need it.
    from transformers.integrations.gguf.gguf_tokenizer_mapping import convert_gguf_tokenizer, get_gguf_tokenizer

    try:
        architecture, vocabulary, config = get_gguf_tokenizer(str(path))
        backend, _ = convert_gguf_tokenizer(architecture, vocabulary)
    # The library raises these, and plain Exception from `tokenizers`, for damaged or unknown vocabularies.
    except Exception as error:
        raise CheckpointError(
            f"{path}: its tokenizer cannot be rebuilt ({type(error).__name__}: {error}); expected tokenizer.ggml.* "
            "metadata of a known kind. Convert the model, and put a tokenizer.json beside it"
        ) from error
    special = {name: config[name] for name in _SPECIAL_TOKENS if config.get(name) is not None}
    eos = vocabulary.get("eos_token_id")
    return backend, TokenizerFiles(
        special_tokens=special,
        chat_template=config.get("chat_template"),
        tool_template=None,
        chat_template_name=f"{path}: tokenizer.chat_template",
        add_bos_token=bool(config.get("add_bos_token", False)),
        # As llama.cpp has it: the flag alone decides, whatever the vocabulary is.
        tokenizer_class="LlamaTokenizer",
        bos_token_id=vocabulary.get("bos_token_id"),
        eos_token_ids=() if eos is None else (eos,),
    )
