"""The command `ryzjax eval`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from ryzjax.cli.arguments import Section
from ryzjax.errors import ConfigError
from ryzjax.serving.messages.config import EngineConfig

__all__ = ["Eval"]


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure a model by benchmarks, by its perplexity on a text, or by its divergence from a reference model.

    If the model runs with int8 activations, --kl also measures it with bf16 activations and shows the difference.
    """

    engine: Section[EngineConfig]
    config: str | None = None
    """TOML file with values for any of these flags, or the name of a file in configs/serve. Flags override the
    file."""
    adapter: str | None = None
    """Directory of an adapter in the format of PEFT, or the name of a --lora adapter, to measure the model with."""
    tasks: tuple[str, ...] = ()
    """Benchmarks to run, separated by commas or spaces: hellaswag, mmlu, lambada, gsm8k, and the demo model's own such
    as demo_addition."""
    data: str = "hub"
    """Directory with the files of the benchmarks (docs/evaluation.md), or hub for the data sets on Hugging Face. The
    demo_* benchmarks need no data."""
    limit: int | None = None
    """Number of items of each benchmark (of each subject for mmlu) to run, from the first on. By default all."""
    sample_seed: int | None = None
    """Seed to draw the items of --limit at random with, instead of taking the first ones."""
    num_fewshot: int | None = None
    """Number of solved examples before each item. By default 5 for mmlu and gsm8k if their data has examples, else
    0."""
    chat: bool = False
    """Ask the questions of gsm8k through the model's chat template."""
    add_special_tokens: bool = True
    """Start benchmark prompts with the special tokens that the tokenizer adds, such as BOS."""
    max_prompt_tokens: int | None = None
    """Largest number of tokens of a benchmark prompt with its answer. Longer prompts lose tokens at the start. By
    default the model's context."""
    temperature: float = 0.0
    """Sampling temperature of the answers to gsm8k and demo_*; 0 takes the likeliest tokens."""
    top_p: float = 1.0
    """If the temperature is above 0, sample from the smallest set of tokens whose probabilities add up to this."""
    generation_seed: int = 0
    """Seed of sampled answers. Each item has its own random stream."""
    perplexity: str | None = None
    """Text file to measure the perplexity on."""
    kl: str | None = None
    """Text file on which to compare the model's distributions with those of --reference. With int8 activations, the
    model is compared a second time with bf16 activations, and the table shows what int8 activations cost."""
    reference: str | None = None
    """Model that --kl compares with."""
    reference_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Dtype of the reference model. auto uses the dtype of its checkpoint."""
    context_tokens: int | None = None
    """Window of the perplexity and KL measurements, in tokens. By default 2048, or the model's context if that is
    shorter."""
    stride_tokens: int | None = None
    """Distance between the starts of two windows, in tokens. By default half the window."""
    verify: bool = False
    """Repeat the measurements of the model's certificate, with the activations that it names, and compare the results.
    If the original model, the text or the data have moved, give their places with --reference, --kl and --data."""
    output: str | None = None
    """JSON file to write the results and the settings to. By default none is written."""

    def run(self) -> int:
        """Measures, prints a table, writes the output file if asked to, and returns the exit status."""
        if self.adapter is not None and (self.kl is not None or self.verify):
            raise ConfigError(
                "--adapter works only with --tasks and --perplexity; for --kl and --verify, merge the adapter first "
                "(ryzjax merge) and measure the result"
            )
        if self.verify:
            return self._verify()
        names = [name for words in self.tasks for name in words.split(",") if name]
        self._check(names)
        # These modules import jax. They are imported late, so that invalid flags are reported at once.
        from rich.console import Console

        from ryzjax.evaluation import (
            TASKS,
            EvaluationText,
            NoData,
            TaskOptions,
            check_tasks,
            evaluate,
            open_data,
            open_model,
            perplexity,
            text_activation_cost,
            text_divergence,
        )
        from ryzjax.evaluation.report import evaluation_table, provenance, result_json
        from ryzjax.serving.frontend.llm import LLM
        from ryzjax.serving.frontend.served_model import open_served_model

        options = TaskOptions(
            limit=self.limit,
            sample_seed=self.sample_seed,
            num_fewshot=self.num_fewshot,
            chat=self.chat,
            add_special_tokens=self.add_special_tokens,
            max_tokens=self.max_prompt_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            generation_seed=self.generation_seed,
        )
        # Names and files are checked before a model is loaded.
        if names:
            check_tasks(names)
        needs_data = any(TASKS[name].needs_data for name in names)
        data = (open_data(self.data) if needs_data else NoData()) if names else None
        text = None if self.perplexity is None else EvaluationText.read(self.perplexity)
        kl_text = None if self.kl is None else EvaluationText.read(self.kl)
        windows = {"context_tokens": self.context_tokens, "stride_tokens": self.stride_tokens}
        tasks, measured, distance, cost = {}, None, None, None
        if data is not None or text is not None:
            engine, adapter = self._engine_and_adapter()
            with LLM(**asdict(engine)) as llm:
                if data is not None:
                    tasks = evaluate(llm, names, data, options, adapter=adapter, show_progress=True)
                if text is not None:
                    measured = perplexity(llm, text, **windows, adapter=adapter, show_progress=True)
            del llm  # frees the engine's memory before two models are compared
        if kl_text is not None and self.reference is not None:
            reference = open_model(self.reference, dtype=self.reference_dtype, layout=self.engine.layout)
            model = open_model(
                self.engine.model,
                revision=self.engine.model_revision,
                dtype=self.engine.dtype,
                load_format=self.engine.load_format,
                layout=self.engine.layout,
                weights=self.engine.weights,
                weights_group=self.engine.weights_group,
                activations=self.engine.activations,
            )
            if model.plan.num_int8_products:
                cost = text_activation_cost(reference, model, kl_text, **windows, show_progress=True)
                distance = cost.int8
            else:
                distance = text_divergence(reference, model, kl_text, **windows, show_progress=True)
        activations = open_served_model(self.engine).plan.activations
        console = Console()
        measured_name = self.engine.model if self.adapter is None else f"{self.engine.model} with {self.adapter}"
        if self.temperature:
            measured_name += f", answers sampled at temperature {self.temperature:g}, top-p {self.top_p:g}"
        title = f"{measured_name}; activations: {activations}"
        console.print(
            evaluation_table(title, tasks=tasks, perplexity=measured, divergence=distance, activation_cost=cost)
        )
        if self.output is not None:
            report: dict[str, object] = {"model": self.engine.model, "settings": asdict(self)}
            report["activations"] = activations
            report["tasks"] = {name: result_json(result) for name, result in tasks.items()}
            report["perplexity"] = None if measured is None else result_json(measured)
            if distance is not None and kl_text is not None:
                report["kl"] = {"text": kl_text.name, "text_sha256": kl_text.sha256, **result_json(distance)}
                report["activation_cost"] = None if cost is None else result_json(cost)
            Path(self.output).write_text(json.dumps(report | provenance(), indent=1) + "\n", encoding="utf-8")
            console.print(f"written to {self.output}")
        return 0

    def _verify(self) -> int:
        """Returns 0 if all figures equal the certified ones, else 1."""
        from rich.console import Console

        from ryzjax.evaluation.certificate import verify
        from ryzjax.evaluation.report import check_table, provenance

        data = None if self.data == "hub" else self.data
        checks = verify(self.engine.model, base=self.reference, text=self.kl, data=data, show_progress=True)
        Console().print(check_table(checks))
        if self.output is not None:
            report = {"model": self.engine.model, "checks": [asdict(check) for check in checks], **provenance()}
            Path(self.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        checked = [check for check in checks if check.not_checked is None]
        differ = sum(not check.is_same for check in checked)
        print(f"{len(checked) - differ} of {len(checked)} figures and files are as certified")
        if len(checked) < len(checks):
            print(f"{len(checks) - len(checked)} figures were not checked, because this machine cannot measure them")
        return 1 if differ else 0

    def _engine_and_adapter(self) -> tuple[EngineConfig, str | None]:
        """Returns the settings of the engine, and the name of the adapter in it."""
        names = [name for name, _ in self.engine.lora_folders]
        if self.adapter is None or self.adapter in names:
            return self.engine, self.adapter
        name = "measured"
        while name in names:
            name += "-"
        return replace(self.engine, lora=(*self.engine.lora, f"{name}={self.adapter}")), name

    def _check(self, names: list[str]) -> None:
        if (self.kl is None) != (self.reference is None):
            given, missing = ("kl", "reference") if self.reference is None else ("reference", "kl")
            raise ConfigError(
                f"--{given} is given without --{missing}; comparing two models needs both: a text and a reference"
            )
        if not names and self.perplexity is None and self.kl is None:
            raise ConfigError("nothing to measure; give --tasks, --perplexity FILE, or --kl FILE --reference MODEL")
