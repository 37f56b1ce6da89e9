"""ryzjax merge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ryzjax.errors import ConfigError

if TYPE_CHECKING:
    from ryzjax.evaluation.divergence import Divergence
    from ryzjax.lora.adapter import Adapter
    from ryzjax.quant.open_model import OpenModel

__all__ = ["Merge"]

_GROUP = 128


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Write a model with an adapter in its weights, and check that its logits are those of the model with the adapter.

    A quantized MODEL is dequantized: the adapter was trained beside exactly those weights. --base adds it into the
    original weights instead, which it has not seen. What is written is checked in float32 arithmetic before it gets its
    name: above the tolerance it is kept as OUT.refused, and the exit status is 1.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Local directory, GGUF file or Hugging Face id of the model the adapter was trained on, plain or quantized."""
    adapter: str
    """Directory of the adapter, as PEFT or ryzjax finetune wrote it."""
    out: str
    """Folder to be made."""
    base: str | None = None
    """Add the adapter into this model's weights, not MODEL's: the 16-bit one that MODEL was quantized from."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hugging Face id; of --base too."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the weights that are written; auto takes the model's. Rounding to 16 bits moves logits, float32 does not."""
    weights: Literal["plain", "int8", "int4"] = "plain"
    """Round the merged weights to nearest, after --dtype, and write them as compressed-tensors."""
    group_size: int | None = None
    """In features that share a scale, with --weights; by default MODEL's own groups, or 128. 0 for a scale a row."""
    text: str | None = None
    """Text file that is read for the check; by default a short passage of prose, code and JSON."""
    tokens: int = 512
    """Of the text, at most."""
    tolerance: float | None = None
    """Largest |logit difference|; by default 1e-3 of float32, 0.15 of float16, 1 of bfloat16, none of fewer bits."""
    max_kl: float | None = None
    """Largest mean KL in nats a token; by default 1e-6, 1e-4 and 5e-3, and 0.05 for int8, 1 for int4."""
    skip_check: bool = False
    """Write without comparing logits: the check has the model in memory in float32."""

    def run(self) -> int:
        """Merges; returns the exit status."""
        import shutil

        from ryzjax.checkpoint.peft import read_adapter
        from ryzjax.evaluation.text import EvaluationText
        from ryzjax.quant.open_model import open_model

        out = Path(self.out).expanduser()
        partial, refused = _beside(out, "partial"), _beside(out, "refused")
        for folder in (out, partial, refused):
            if folder.exists():
                raise ConfigError(f"{folder} exists; name another --out, or remove it")
        if self.weights == "plain" and self.group_size is not None:
            raise ConfigError("--group-size is of --weights int8 or int4; add one, or leave it out")
        if self.tokens < 2:
            raise ConfigError(f"--tokens {self.tokens} is too few to compare models on; expected 2 or more")
        text = None if self.text is None else EvaluationText.read(self.text).text
        trained_on = open_model(self.model, revision=self.model_revision, dtype="float32")
        base = trained_on
        if self.base is not None:
            base = open_model(self.base, revision=self.model_revision, dtype="float32", weights="bf16")
        adapter = read_adapter(Path(self.adapter).expanduser(), trained_on.model)
        is_good = True
        try:
            self._write(trained_on, base, adapter, out)
            if not self.skip_check:
                merged = open_model(str(partial), dtype="float32")
                is_good = self._check(trained_on, base, adapter, merged, text)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        if not is_good:
            partial.replace(refused)
            print(f"{refused}: what was written, to be looked at or removed")
            return 1
        partial.replace(out)
        print(f"{out}: written; serve it with: ryzjax serve {out}")
        return 0

    def _write(self, trained_on: OpenModel, base: OpenModel, adapter: Adapter, out: Path) -> None:
        """Into `out`.partial."""
        from ryzjax.quant.merge import merge_and_quantize, merge_checkpoint
        from ryzjax.quant.recipe import Recipe

        if self.weights == "plain":
            merge_checkpoint(base.source, adapter, _beside(out, "partial"), dtype=self.dtype, show_progress=True)
            return
        groups = [format.group for format in trained_on.model.quantization.values() if format.group]
        own = max(set(groups), key=groups.count) if groups else _GROUP
        group = own if self.group_size is None else self.group_size
        recipe = Recipe(method="rtn", bits=4 if self.weights == "int4" else 8, group_size=group)
        merge_and_quantize(base.source, adapter, out, recipe, dtype=self.dtype, show_progress=True)

    def _check(
        self, trained_on: OpenModel, base: OpenModel, adapter: Adapter, merged: OpenModel, text: str | None
    ) -> bool:
        """Prints how far the merged model is from the base with its adapter; whether that is near enough."""
        from ryzjax.evaluation.merge_check import TOLERANCES, Tolerance, check_tokens, merge_divergence
        from ryzjax.quant.merge import merged_dtype

        tokens = check_tokens(trained_on, text, self.tokens)
        kind = merged_dtype(base.source, self.dtype) if self.weights == "plain" else self.weights
        usual = TOLERANCES[kind]
        tolerance = Tolerance(
            logits=usual.logits if self.tolerance is None else self.tolerance,
            mean_kl=usual.mean_kl if self.max_kl is None else self.max_kl,
        )
        found = merge_divergence(base, adapter, merged, tokens, name=self.adapter, show_progress=True)
        print(f"merged ({kind}) against {base.source.name} with {self.adapter}, over {found.tokens} tokens in float32:")
        print(_figures(found), f"(tolerance {tolerance.logits:g} and {tolerance.mean_kl:g})")
        if base is not trained_on:
            other = merge_divergence(trained_on, adapter, merged, tokens, name=self.adapter, show_progress=True)
            print(f"against {trained_on.source.name}, which the adapter was trained on, with it:")
            print(_figures(other))
        reason = tolerance.excess(found)
        if reason is not None:
            print(f"refused: {reason}. Was the adapter trained on this model? --dtype float32 rounds nothing.")
        return reason is None


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}.{ending}")


def _figures(found: Divergence) -> str:
    return (
        f"  max |logit difference| {found.max_logit_difference:.2e}, mean KL {found.mean_kl:.2e} nats, "
        f"top-1 agreement {found.top1_agreement:.2%}"
    )
