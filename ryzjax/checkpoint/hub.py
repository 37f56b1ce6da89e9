"""Downloads a model's files from the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

from ryzjax.errors import CheckpointError

__all__ = ["MODEL_TEXT_FILES", "download"]

MODEL_TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template*",
    "additional_chat_templates/*.jinja",
)
"""Patterns of the files of a repository that are not weights: config, tokenizer and chat templates."""

# Sub-folders and `consolidated*` hold the same weights once more, in the vendor's own layout.
_NOT_DOWNLOADED = ["*/*.safetensors", "*/*.json", "*/*.txt", "*/*.gguf", "*/tokenizer*", "consolidated*"]


def download(repository: str, patterns: list[str], *, revision: str | None, show_progress: bool) -> Path:
    """Downloads the files of a repository that match `patterns`, or finds them in the local Hugging Face cache.

    Args:
      repository: A Hub id such as "org/name".
      patterns: Glob patterns of file names.
      revision: Branch, tag or commit; None for the default branch.
      show_progress: Whether to show progress bars on stderr.

    Returns:
      The local directory of the files.

    Raises:
      CheckpointError: There is no such public repository, the Hub cannot be reached, or the download failed.
    """
    # Imported here: a local directory needs neither the library nor its start-up time.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    bars_were_off = are_progress_bars_disabled()
    if not show_progress:
        disable_progress_bars()
    try:
        return Path(
            snapshot_download(repository, revision=revision, allow_patterns=patterns, ignore_patterns=_NOT_DOWNLOADED)
        )
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"model={repository!r}: not a local directory, and the Hugging Face Hub has no such public repository; "
            "check the name, or log in with `hf auth login` if it is private or gated"
        ) from error
    except LocalEntryNotFoundError as error:
        raise CheckpointError(
            f"model={repository!r}: not a local directory, not in the local Hugging Face cache, and the Hub cannot be "
            "reached; connect to the network, or name a local directory"
        ) from error
    except (HFValidationError, OSError, RuntimeError) as error:
        at = "" if revision is None else f" at revision {revision!r}"
        raise CheckpointError(
            f"model={repository!r}{at}: download from the Hugging Face Hub failed "
            f"({type(error).__name__}: {error}); check the name, or name a local directory"
        ) from error
    finally:
        if not show_progress and not bars_were_off:
            enable_progress_bars()
