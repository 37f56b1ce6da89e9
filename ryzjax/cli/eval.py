"""ryzjax eval."""

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
    """Measure a model: benchmarks, perplexity of a text, divergence from a reference model."""

    engine: Section[EngineConfig]
    config: str | None = None
    """TOML file, or the name of one in configs/serve, that sets any of these flags; a flag wins over it."""
    adapter: str | None = None
    """Folder of an adapter (as PEFT saves it), or name of a --lora one, to measure with the model."""
    tasks: tuple[str, ...] = ()
    """Benchmarks: hellaswag, mmlu, lambada, gsm8k, demo_addition and others of the demo model; by commas or spaces."""
    data: str = "hub"
    """Folder with the benchmarks' files (docs/evaluation.md), or hub for Hugging Face data sets; demo_* need none."""
    limit: int | None = None
    """Items of each benchmark (of each subject of mmlu), the first ones."""
    sample_seed: int | None = None
    """Draw the limited items at random with this seed instead."""
    num_fewshot: int | None = None
    """Examples in front of each item; by default 5 for mmlu and gsm8k where their data has some, else 0."""
    chat: bool = False
    """Ask gsm8k through the model's chat template."""
    add_special_tokens: bool = True
    """Begin benchmark prompts as the tokenizer does (BOS)."""
    max_prompt_tokens: int | None = None
    """Longest benchmark prompt with its answer; longer ones are cut on the left. By default the context."""
    temperature: float = 0.0
    """That gsm8k and demo_* sample their answers at; 0 takes the likeliest tokens."""
    top_p: float = 1.0
    """With a temperature: sample from the likeliest tokens that have this probability together."""
    generation_seed: int = 0
    """Of sampled answers; each item has a random stream of its own."""
    perplexity: str | None = None
    """Text file to measure the perplexity of."""
    kl: str | None = None
    """Text file to compare the model's distributions with the reference's on."""
    reference: str | None = None
    """Model that --kl compares with."""
    reference_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the reference; auto takes its checkpoint's."""
    context_tokens: int | None = None
    """Window of perplexity and KL; by default 2048, or the model's context where that is less."""
    stride_tokens: int | None = None
    """Between windows; by default half the window."""
    verify: bool = False
    """Measure again what the model's certificate holds, and compare: --reference, --kl and --data say where the plain
    model, the text and the data are, where they have moved."""
    output: str | None = None
    """JSON file for the results, and how they came about."""

    def run(self) -> int:
        """Measures, prints a table, writes the file; returns the exit status."""
        if self.adapter is not None and (self.kl is not None or self.verify):
            raise ConfigError(
                "--adapter is measured by --tasks and --perplexity alone; for --kl and --verify merge it first "
                "(ryzjax merge), and measure the result"
            )
        if self.verify:
            return self._verify()
        names = [name for words in self.tasks for name in words.split(",") if name]
        self._check(names)
        # Heavy modules only now: wrong flags are reported before jax is imported.
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
            text_divergence,
        )
        from ryzjax.evaluation.report import evaluation_table, provenance, result_json
        from ryzjax.serving.frontend.llm import LLM

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
        # Names and files are looked at before a model is loaded.
        if names:
            check_tasks(names)
        needs_data = any(TASKS[name].needs_data for name in names)
        data = (open_data(self.data) if needs_data else NoData()) if names else None
        text = None if self.perplexity is None else EvaluationText.read(self.perplexity)
        kl_text = None if self.kl is None else EvaluationText.read(self.kl)
        windows = {"context_tokens": self.context_tokens, "stride_tokens": self.stride_tokens}
        tasks, measured, distance = {}, None, None
        if data is not None or text is not None:
            engine, adapter = self._engine_and_adapter()
            with LLM(**asdict(engine)) as llm:
                if data is not None:
                    tasks = evaluate(llm, names, data, options, adapter=adapter, show_progress=True)
                if text is not None:
                    measured = perplexity(llm, text, **windows, adapter=adapter, show_progress=True)
            del llm  # the engine's memory is free before two models are compared
        if kl_text is not None and self.reference is not None:
            distance = text_divergence(
                open_model(self.reference, dtype=self.reference_dtype, layout=self.engine.layout),
                open_model(
                    self.engine.model,
                    revision=self.engine.model_revision,
                    dtype=self.engine.dtype,
                    load_format=self.engine.load_format,
                    layout=self.engine.layout,
                    weights=self.engine.weights,
                    weights_group=self.engine.weights_group,
                ),
                kl_text,
                **windows,
                show_progress=True,
            )
        console = Console()
        measured_name = self.engine.model if self.adapter is None else f"{self.engine.model} with {self.adapter}"
        if self.temperature:
            measured_name += f", answers sampled at temperature {self.temperature:g}, top-p {self.top_p:g}"
        console.print(evaluation_table(measured_name, tasks=tasks, perplexity=measured, divergence=distance))
        if self.output is not None:
            report: dict[str, object] = {"model": self.engine.model, "settings": asdict(self)}
            report["tasks"] = {name: result_json(result) for name, result in tasks.items()}
            report["perplexity"] = None if measured is None else result_json(measured)
            if distance is not None and kl_text is not None:
                report["kl"] = {"text": kl_text.name, "text_sha256": kl_text.sha256, **result_json(distance)}
            Path(self.output).write_text(json.dumps(report | provenance(), indent=1) + "\n", encoding="utf-8")
            console.print(f"written to {self.output}")
        return 0

    def _verify(self) -> int:
        """0 where all figures are the certified ones, else 1."""
        from rich.console import Console

        from ryzjax.evaluation.certificate import verify
        from ryzjax.evaluation.report import check_table, provenance

        data = None if self.data == "hub" else self.data
        checks = verify(self.engine.model, base=self.reference, text=self.kl, data=data, show_progress=True)
        Console().print(check_table(checks))
        if self.output is not None:
            report = {"model": self.engine.model, "checks": [asdict(check) for check in checks], **provenance()}
            Path(self.output).write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        differ = sum(not check.is_same for check in checks)
        print(f"{len(checks) - differ} of {len(checks)} figures and files are as certified")
        return 1 if differ else 0

    def _engine_and_adapter(self) -> tuple[EngineConfig, str | None]:
        """The engine's settings, and the name its adapter has in it."""
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
            raise ConfigError(f"--{given} is given without --{missing}; a model is compared with another, on a text")
        if not names and self.perplexity is None and self.kl is None:
            raise ConfigError("nothing to measure; give --tasks, --perplexity FILE, or --kl FILE --reference MODEL")
