"""A tokenizer of bytes for models with random weights, which need no better one."""

from __future__ import annotations

from pathlib import Path

__all__ = ["write_byte_tokenizer"]


def write_byte_tokenizer(folder: Path, *, vocab_size: int) -> None:
    """Writes tokenizer.json and tokenizer_config.json with 3 special tokens, the 256 bytes, and filler tokens.

    Args:
      folder: an existing folder.
      vocab_size: the number of tokens. It is raised to 259 if it is smaller.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    special = ["<unk>", "<s>", "</s>"]
    letters = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    vocab = {letter: i for i, letter in enumerate(letters)}
    vocab |= {f"<filler{i}>": i for i in range(len(vocab), vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], unk_token="<unk>"))
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text('{"bos_token": "<s>", "eos_token": "</s>"}')
