"""The command `ryzjax chat`."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from rich.console import Console

from ryzjax.cli.arguments import Section
from ryzjax.cli.sampling_flags import SamplingFlags
from ryzjax.errors import RequestError
from ryzjax.serving.messages.config import EngineConfig

if TYPE_CHECKING:
    from ryzjax.serving.frontend.llm import LLM

__all__ = ["Chat"]


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Talk to a model in the terminal. Type /reset to start a new conversation, /exit or Ctrl-D to quit."""

    engine: Section[EngineConfig]
    sampling: Section[SamplingFlags] = field(default_factory=SamplingFlags)
    config: str | None = None
    """TOML file with values for any of these flags, or the name of a file in configs/serve. Flags override the
    file."""
    system: str | None = None
    """System message at the start of every conversation. By default there is none."""

    def run(self) -> int:
        """Reads lines and streams the answers until /exit, and returns the exit status."""
        self.sampling.params({})  # Invalid values are reported before the model is loaded.
        from ryzjax.serving.frontend.llm import LLM

        options = asdict(self.engine)
        console = Console()
        with LLM(options.pop("model"), **options) as llm:
            console.print(f"{llm.engine.model_name}. /reset forgets the conversation, /exit ends it.", style="dim")
            messages = self._opening()
            while True:
                try:
                    line = console.input("[bold green]> ").strip()
                except EOFError:
                    return 0
                if line == "/exit":
                    return 0
                if line == "/reset":
                    messages = self._opening()
                elif line:
                    messages = self._turn(llm, console, messages, line)

    def _opening(self) -> list[dict[str, object]]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _turn(
        self, llm: LLM, console: Console, messages: list[dict[str, object]], line: str
    ) -> list[dict[str, object]]:
        """Returns the conversation after one exchange, or the same conversation if the request was refused."""
        asked = [*messages, {"role": "user", "content": line}]
        try:
            answer = self._answer(llm, console, asked)
        except RequestError as error:
            console.print(f"error: {error}", style="red", markup=False)
            return messages
        return [*asked, {"role": "assistant", "content": answer}]

    def _answer(self, llm: LLM, console: Console, messages: list[dict[str, object]]) -> str:
        prompt = llm.engine.tokenizer.apply_chat_template(messages)
        params = self.sampling.params(llm.engine.default_sampling)
        parts: list[str] = []
        for delta in llm.stream({"prompt_token_ids": prompt}, params):
            console.print(delta.text, end="", markup=False, highlight=False, soft_wrap=True)
            parts.append(delta.text)
        console.print()
        return "".join(parts)
