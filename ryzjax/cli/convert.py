"""The command `ryzjax convert`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

__all__ = ["Convert"]


@dataclass(frozen=True, kw_only=True)
class Convert:
    """Write a model as a directory that loads faster: dequantized, in the dtype it is served in, and sharded.

    Serve the directory like any other model.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Local directory, GGUF file, or Hugging Face id."""
    out: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="OUT")]
    """Folder to write; it must be empty or not exist."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the weights; auto takes the checkpoint's (float16 becomes bfloat16)."""

    def run(self) -> int:
        """Converts the model. Returns the exit status."""
        import jax

        from ryzjax.checkpoint.source import resolve_source
        from ryzjax.data.tokenizer import Tokenizer
        from ryzjax.loading.load import load_weights
        from ryzjax.loading.model_config import read_model_config
        from ryzjax.loading.orbax import save_converted
        from ryzjax.models.registry import abstract_model
        from ryzjax.sharding import Layout, Placement

        source = resolve_source(self.model, revision=self.model_revision)
        config = read_model_config(source, dtype=self.dtype)
        out = Path(self.out).expanduser()
        model = abstract_model(config, Placement(Layout.load("single"), jax.devices()[:1]))
        weights = load_weights(source, model, show_progress=True)
        save_converted(out, source, config, weights)
        if source.weight_format == "gguf":
            Tokenizer.load(source.path).save(out)
        print(f"{out}: {model.num_parameters:,} parameters in {config.dtype}; serve it with: ryzjax serve {out}")
        return 0
