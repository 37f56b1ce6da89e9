"""The command `ryzjax generate`."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field

from ryzjax.cli.arguments import Section
from ryzjax.cli.sampling_flags import SamplingFlags
from ryzjax.errors import ConfigError
from ryzjax.serving.messages.config import EngineConfig

__all__ = ["Generate"]


@dataclass(frozen=True, kw_only=True)
class Generate:
    """Complete prompts and print each prompt with its completion on standard output."""

    engine: Section[EngineConfig]
    sampling: Section[SamplingFlags] = field(default_factory=SamplingFlags)
    config: str | None = None
    """TOML file with values for any of these flags, or the name of a file in configs/serve. Flags override the
    file."""
    prompt: tuple[str, ...] = ()
    """One or more prompts. Without this flag, standard input is the only prompt."""

    def run(self) -> int:
        """Generates and prints the completions, and returns the exit status."""
        prompts = list(self.prompt) or [sys.stdin.read()]
        if not all(prompts):
            raise ConfigError("a prompt is empty; give --prompt TEXT, or text on standard input")
        self.sampling.params({})  # Invalid values are reported before the model is loaded.
        from ryzjax.serving.frontend.llm import LLM

        options = asdict(self.engine)
        with LLM(options.pop("model"), **options) as llm:
            params = self.sampling.params(llm.engine.default_sampling)
            for output in llm.generate(prompts, params, use_tqdm=len(prompts) > 1):
                print((output.prompt or "") + output.outputs[0].text, flush=True)
        return 0
