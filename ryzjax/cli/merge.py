"""The command `ryzjax merge`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ryzjax.errors import ConfigError

if TYPE_CHECKING:
    from ryzjax.evaluation.divergence import Divergence, ReferenceStates
    from ryzjax.loading.open_model import OpenModel
    from ryzjax.lora.adapter import Adapter, BaseQuantization
    from ryzjax.quant.recipe import Recipe

__all__ = ["Merge"]

_GROUP = 128


@dataclass(frozen=True, kw_only=True)
class Merge:
    """Write a model with an adapter merged into its weights, and check its logits against the model with the adapter.

    A quantized MODEL is dequantized. A plain MODEL that was quantized while loading for the training (finetune
    --weights) is quantized the same way first, since the adapter was trained on those weights. --base merges the
    adapter into the original weights instead, on which it was not trained. The result is checked in float32 before it
    gets its name. If it exceeds the tolerance, it is kept as OUT.refused, and the exit status is 1. OUT/merge.json
    records the base, the adapter and the figures.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Local directory, GGUF file or Hugging Face id of the model the adapter was trained on, plain or quantized."""
    adapter: str
    """Directory of the adapter, written by PEFT or ryzjax finetune."""
    out: str
    """Folder to create."""
    base: str | None = None
    """Merge the adapter into this model's weights instead: the 16-bit model that MODEL was quantized from."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hugging Face id; it applies to --base too."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Dtype of the written weights; auto takes the model's. Rounding to 16 bits changes logits, float32 does not."""
    weights: Literal["plain", "int8", "int4"] = "plain"
    """Quantize the merged weights to nearest, after --dtype, and write them in the compressed-tensors format."""
    group_size: int | None = None
    """In features that share a scale, with --weights; by default MODEL's group size, or 128. 0 for one scale a row."""
    text: str | None = None
    """Text file for the check; by default a short passage of prose, code and JSON."""
    tokens: int = 512
    """Largest number of tokens of the text to check."""
    tolerance: float | None = None
    """Largest |logit difference| of the plain weights; by default 1e-3 (float32), 0.15 (float16), 1 (bfloat16)."""
    max_kl: float | None = None
    """Largest mean KL divergence in nats a token; by default 1e-6, 1e-4 and 5e-3 for the three dtypes. With --weights,
    by default 1.5 times that of the merged weights quantized while loading, plus 0.001."""
    skip_check: bool = False
    """Write without comparing logits. The check needs memory for the model in float32."""

    def run(self) -> int:
        """Merges, checks and writes the model. Returns the exit status."""
        import shutil

        from ryzjax.evaluation.text import EvaluationText

        out = Path(self.out).expanduser()
        partial, refused, plain = (_beside(out, ending) for ending in ("partial", "refused", "merged"))
        for folder in (out, partial, refused, plain):
            if folder.exists():
                raise ConfigError(f"{folder} exists; name another --out, or remove it")
        if self.weights == "plain" and self.group_size is not None:
            raise ConfigError("--group-size needs --weights int8 or int4; add one, or leave it out")
        if self.tokens < 2:
            raise ConfigError(f"--tokens {self.tokens} is too few to compare models; expected 2 or more")
        text = None if self.text is None else EvaluationText.read(self.text).text
        merging = _Merging.open(self)
        print(merging.base_message)
        written = partial if self.weights == "plain" else plain
        try:
            reason, checks = self._write(merging, written, out, text)
            for folder in (partial, plain):
                if folder.exists():
                    _record(folder, merging, self, checks)
        except BaseException:
            for folder in (partial, plain):
                shutil.rmtree(folder, ignore_errors=True)
            raise
        result = partial if partial.exists() else plain
        if reason is not None:
            print(f"refused: {reason}")
            result.replace(refused)
        else:
            result.replace(out)
        shutil.rmtree(plain, ignore_errors=True)
        if reason is not None:
            print(f"{refused}: the refused model, for inspection")
            return 1
        print(f"{out}: written; serve it with: ryzjax serve {out}")
        return 0

    def _write(
        self, merging: _Merging, written: Path, out: Path, text: str | None
    ) -> tuple[str | None, dict[str, Divergence]]:
        """Merges, quantizes and checks. Returns the reason for a refusal, and the figures."""
        from ryzjax.quantizing.merge import merge_checkpoint, quantize_merged

        merge_checkpoint(
            merging.base.source,
            merging.adapter,
            written,
            rounding=merging.rounding,
            dtype=self.dtype,
            show_progress=True,
        )
        check = None if self.skip_check else _Check.begin(self, merging, text)
        reason = None if check is None else check.plain(written)
        if self.weights != "plain" and reason is None:
            quantize_merged(written, out, self._recipe(merging.trained_on), show_progress=True)
            reason = None if check is None else check.rounded(written, _beside(out, "partial"))
        return reason, {} if check is None else check.found

    def _recipe(self, trained_on: OpenModel) -> Recipe:
        from ryzjax.quant.recipe import Recipe

        # GGUF has int8 weights in groups of 16, which would be too small for 4 bits: the kernels need 32.
        formats = trained_on.model.quantization.values()
        groups = [format.group for format in formats if format.group and (format.pack or format.group % 32 == 0)]
        own = max(set(groups), key=groups.count) if groups else _GROUP
        group = own if self.group_size is None else self.group_size
        return Recipe(method="rtn", bits=4 if self.weights == "int4" else 8, group_size=group)


@dataclass(frozen=True, kw_only=True)
class _Merging:
    """An adapter, the model that it was trained on, and the base that it is merged into.

    Attributes:
      trained_on: The model that the adapter was trained on, opened in float32.
      base: The model to merge into, opened in float32; the same without --base.
      adapter: The adapter.
      rounding: How the weights of `base` are quantized before the adapter is added; None to take them as stored.
      base_message: A message for people that names the base and explains the choice.
    """

    trained_on: OpenModel
    base: OpenModel
    adapter: Adapter
    rounding: BaseQuantization | None
    base_message: str

    @property
    def trained_on_name(self) -> str:
        """Name of the model that the adapter was trained on, with its quantization while loading."""
        rounding = self.adapter.base_quantization
        return self.trained_on.source.name + ("" if rounding is None else f" quantized to {rounding}")

    @classmethod
    def open(cls, options: Merge) -> _Merging:
        """Opens the models and reads the adapter. Weights are read later."""
        from ryzjax.checkpoint.peft.read import read_adapter
        from ryzjax.loading.open_model import open_model

        revision = options.model_revision
        trained_on = open_model(options.model, revision=revision, dtype="float32")
        adapter = read_adapter(Path(options.adapter).expanduser(), trained_on.model)
        rounding, name = adapter.base_quantization, trained_on.source.name
        if rounding is not None and trained_on.model.quantization:
            raise ConfigError(
                f"the adapter was trained on a plain model quantized to {rounding} while loading, and {name} "
                "is quantized already; name the plain model"
            )
        if rounding is not None:
            weights, group = rounding.weights, rounding.group
            trained_on = open_model(
                options.model, revision=revision, dtype="float32", weights=weights, weights_group=group
            )
        kind = f"quantized to {rounding}" if rounding else "quantized" if trained_on.model.quantization else "as stored"
        if options.base is None:
            added = "as stored" if kind == "as stored" else f"{kind} and dequantized"
            message = f"base: {name}, {added}: the weights that the adapter was trained on"
            return cls(trained_on=trained_on, base=trained_on, adapter=adapter, rounding=rounding, base_message=message)
        base = open_model(options.base, revision=revision, dtype="float32", weights="bf16")
        message = f"base: {base.source.name}, its plain weights (--base); the adapter was trained on {name}, {kind}"
        if kind != "as stored":
            message += ". It was not trained on the plain weights, so answers differ: both figures are printed"
        return cls(trained_on=trained_on, base=base, adapter=adapter, rounding=None, base_message=message)


@dataclass(frozen=True, kw_only=True)
class _Check:
    """The check of one merge.

    Attributes:
      options: The command's options.
      merging: The models and the adapter.
      tokens: Token ids of the text to compare on.
      live: Final states of the base with the live adapter, which merged models are compared with.
      found: Name of a comparison -> its result.
    """

    options: Merge
    merging: _Merging
    tokens: Sequence[int]
    live: ReferenceStates
    found: dict[str, Divergence]

    @classmethod
    def begin(cls, options: Merge, merging: _Merging, text: str | None) -> _Check:
        """Runs the base with the live adapter over the text."""
        from ryzjax.evaluation.merge_check import adapter_states, check_tokens

        tokens = check_tokens(merging.trained_on, text, options.tokens)
        live = adapter_states(merging.base, merging.adapter, tokens, name=options.adapter, show_progress=True)
        return cls(options=options, merging=merging, tokens=tokens, live=live, found={})

    def plain(self, folder: Path) -> str | None:
        """Compares the plain merged weights. Returns the reason for a refusal."""
        from ryzjax.evaluation.merge_check import TOLERANCES, Tolerance, adapter_states, merge_divergence
        from ryzjax.loading.open_model import open_model
        from ryzjax.quantizing.merge import merged_dtype

        options, merging = self.options, self.merging
        kind = merged_dtype(merging.base.source, options.dtype)
        usual = TOLERANCES[kind]
        is_last = options.weights == "plain"
        tolerance = Tolerance(
            logits=usual.logits if options.tolerance is None else options.tolerance,
            mean_kl=usual.mean_kl if options.max_kl is None or not is_last else options.max_kl,
        )
        merged = open_model(str(folder), dtype="float32")
        found = self.found["merged"] = merge_divergence(self.live, merged, show_progress=True)
        name = merging.base.source.name
        print(f"merged ({kind}) against {name} with {options.adapter}, over {found.tokens} tokens in float32:")
        print(_figures(found), f"(tolerance {tolerance.logits:g} and {tolerance.mean_kl:g})")
        if merging.base is not merging.trained_on:
            trained_on = adapter_states(merging.trained_on, merging.adapter, self.tokens, name=options.adapter)
            other = self.found["merged, against what the adapter was trained on"] = merge_divergence(trained_on, merged)
            print(f"against {merging.trained_on_name}, which the adapter was trained on, with the adapter:")
            print(_figures(other))
        reason = tolerance.excess(found)
        if reason is None:
            return None
        return f"{reason}. Check that the adapter was trained on this model; --dtype float32 rounds nothing."

    def rounded(self, plain: Path, written: Path) -> str | None:
        """Compares the written low-bit weights, and the same weights quantized while loading.

        Returns the reason for a refusal.
        """
        from ryzjax.evaluation.merge_check import merge_divergence, quantization_limit, quantized_while_loading
        from ryzjax.loading.open_model import open_model

        merged = open_model(str(written), dtype="float32")
        on_load = quantized_while_loading(open_model(str(plain), dtype="float32"), merged)
        expected = self.found["rounded as it is loaded"] = merge_divergence(self.live, on_load, show_progress=True)
        found = self.found["written"] = merge_divergence(self.live, merged, show_progress=True)
        limit = quantization_limit(expected) if self.options.max_kl is None else self.options.max_kl
        print(f"merged ({self.options.weights}) against the same:")
        print(_figures(found), f"(tolerance {limit:.2e} nats)")
        print(f"merged, and quantized to {self.options.weights} while loading, against the same:")
        print(_figures(expected))
        if found.mean_kl <= limit:
            return None
        return (
            f"the mean KL is {found.mean_kl:.3g} nats a token, above {limit:.3g}: quantizing cost more than it does "
            "when the same weights are quantized while loading. Check the disk, or set another tolerance with --max-kl"
        )


def _record(folder: Path, merging: _Merging, options: Merge, checks: dict[str, Divergence]) -> None:
    """Writes merge.json with the base, the adapter and the figures."""
    from ryzjax.errors import CheckpointError

    figures = ("tokens", "mean_kl", "max_logit_difference", "top1_agreement")
    trained_on = merging.adapter.base_quantization
    content = {
        "base": merging.base.source.name,
        "base_rounding": None if merging.rounding is None else str(merging.rounding),
        "adapter": options.adapter,
        "trained_on": merging.trained_on.source.name,
        "trained_on_rounding": None if trained_on is None else str(trained_on),
        "dtype": options.dtype,
        "weights": options.weights,
        "against_the_live_adapter": {name: {key: getattr(one, key) for key in figures} for name, one in checks.items()},
    }
    path = folder / "merge.json"
    try:
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written ({error.strerror}); check the path, its permissions and the free space"
        ) from error


def _beside(out: Path, ending: str) -> Path:
    return out.with_name(f"{out.name}.{ending}")


def _figures(found: Divergence) -> str:
    return (
        f"  max |logit difference| {found.max_logit_difference:.2e}, mean KL {found.mean_kl:.2e} nats, "
        f"top-1 agreement {found.top1_agreement:.2%}"
    )
