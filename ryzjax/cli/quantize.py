"""The command `ryzjax quantize`."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ryzjax.errors import ConfigError

__all__ = ["Quantize"]


@dataclass(frozen=True, kw_only=True)
class Quantize:
    """Write a model in 4 or 8 bits, in the compressed-tensors format that RyzJAX and vLLM load.

    Without calibration text, weights are rounded to nearest with searched scales. With calibration text, each group
    of layers takes the method with the least error on held-out text. A run that was killed resumes when it is started
    again with the same options.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """Local directory or Hugging Face id of a plain model."""
    config: str | None = None
    """TOML file with any of these options, or the name of one in configs/quantize (w4, w4_small, w8a8, mixed). Flags
    take precedence over it."""
    out: str | None = None
    """Folder to create; by default MODEL's name followed by -w4 or -w8, in the current directory."""
    model_revision: str | None = None
    """Branch, tag or commit of a Hugging Face id."""
    method: Literal["rtn", "hqq", "gptq", "awq", "auto"] | None = None
    """Method of quantizing; by default auto with calibration text, else rtn (round to nearest)."""
    bits: Literal[4, 8] = 4
    """Bits of a weight of the linear layers."""
    group_size: int = 128
    """In features that share a scale; 0 for one scale a row."""
    asymmetric: bool = False
    """Give groups a zero point."""
    int8_activations: bool = False
    """W8A8, with --bits 8: one scale a row, and activations quantized to int8 per token at run time."""
    overrides: dict[str, int] = field(default_factory=dict)
    """Regular expressions over layer names (layers.0.mlp.down), and the bits of the layers they match: 4, 8 or 16."""
    target_bits: float | None = None
    """Mix 4 and 8 bits up to this average of bits a weight, scales included. The most sensitive layers get 8 bits."""
    max_kl: float | None = None
    """Mix 4 and 8 bits so that the sum of the layers' KL divergences stays below this, in nats a token."""
    lm_head_bits: Literal[8, 16] = 16
    """Bits of the output head."""
    calibration: str | None = None
    """Text, JSON or JSONL file, or Hugging Face dataset id (org/name:split), to calibrate on."""
    kv_scales: bool = False
    """Also calibrate the scales of an fp8 KV cache (serve --kv-dtype fp8_e4m3) on the calibration text."""
    samples: int = 128
    """Sequences to take from the calibration text."""
    sequence_tokens: int = 512
    """Tokens of each sequence."""
    seed: int = 0
    """Random seed of the choice of sequences."""
    eval_text: str | None = None
    """Text file on which the result is compared with MODEL: KL divergence, top-1 agreement, perplexity, with bf16
    activations, and also with int8 activations if this machine can run them. Use other text than for calibration."""
    tasks: tuple[str, ...] = ()
    """Benchmarks on which both models are evaluated: hellaswag, mmlu, lambada, gsm8k."""
    data: str = "hub"
    """Folder with the benchmarks' files, or hub for Hugging Face datasets."""
    limit: int | None = None
    """Items to take of each benchmark; by default all."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype that the model computes in; auto takes the checkpoint's (float16 becomes bfloat16)."""
    layout: str = "single"
    """Sharding of the blocks: the name of a shipped layout, or a TOML file."""

    def run(self) -> int:
        """Quantizes the model, measures it and prints the certificate. Returns the exit status."""
        import logging
        import sys

        from rich.console import Console

        from ryzjax.checkpoint.certificate import read_certificate
        from ryzjax.checkpoint.source import resolve_source
        from ryzjax.data.tokenizer import Tokenizer
        from ryzjax.evaluation.certificate import Measurement, certify
        from ryzjax.evaluation.evaluate import check_tasks
        from ryzjax.evaluation.report import certificate_table
        from ryzjax.evaluation.tasks import TaskOptions, open_data
        from ryzjax.evaluation.text import EvaluationText
        from ryzjax.loading.model_config import read_model_config
        from ryzjax.models.registry import abstract_model
        from ryzjax.quant.recipe import Recipe
        from ryzjax.quantizing.calibration import calibration_from_text
        from ryzjax.quantizing.kv_scales import add_kv_scales
        from ryzjax.quantizing.quantize import quantize
        from ryzjax.quantizing.report_table import report_table
        from ryzjax.quantizing.sensitivity import mix_of_bits
        from ryzjax.sharding import Layout, Placement

        if self.kv_scales and self.calibration is None:
            raise ConfigError("--kv-scales needs --calibration: the scales of keys and values are measured on text")
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        recipe = Recipe(
            method=self.method or ("auto" if self.calibration else "rtn"),
            bits=self.bits,
            group_size=self.group_size,
            symmetric=not self.asymmetric,
            int8_activations=self.int8_activations,
            overrides=self.overrides,
            target_bits=self.target_bits,
            max_kl=self.max_kl,
            lm_head_bits=self.lm_head_bits,
        )
        # The inputs of the final evaluation are checked now, before hours of work.
        if self.tasks:
            check_tasks(self.tasks)
            open_data(self.data)
        if self.eval_text is not None:
            EvaluationText.read(self.eval_text)
        source = resolve_source(self.model, revision=self.model_revision)
        config = read_model_config(source, dtype=self.dtype)
        placement = Placement(Layout.load(self.layout))
        out = Path(self.out or f"{Path(source.name).name}-w{self.bits}").expanduser()
        calibration = None
        if self.calibration is not None:
            calibration = calibration_from_text(
                self.calibration,
                Tokenizer.load(source.path),
                sequences=self.samples,
                sequence_tokens=min(self.sequence_tokens, config.max_position),
                seed=self.seed,
            )
        bits = None
        if recipe.is_mixed and calibration is not None:
            bits = mix_of_bits(source, abstract_model(config, placement), recipe, calibration)
        result = quantize(source, config, placement, recipe, out, calibration=calibration, bits=bits)
        kv_scales = None
        if calibration is not None and self.kv_scales:
            add_kv_scales(result.folder, placement, list(calibration.tokens), dtype=self.dtype)
            kv_scales = {"kind": "fp8_e4m3", "rule": "largest magnitude / 448, a KV head", **calibration.describe()}
        what = Measurement(
            text=self.eval_text,
            tasks=self.tasks,
            data=self.data,
            options=TaskOptions(limit=self.limit),
            dtype=self.dtype,
        )
        certify(result, source, recipe, calibration, what, seed=self.seed, kv_scales=kv_scales, show_progress=True)
        console = Console()
        console.print(report_table(result.reports))
        certificate = read_certificate(out)
        assert certificate is not None
        console.print(certificate_table(certificate))
        print(f"{out}: written in {result.wall_s:.0f} s; serve it with: ryzjax serve {out}")
        return 0
