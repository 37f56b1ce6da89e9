"""The entry point of the command line. Each command is a dataclass whose fields are its flags."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from ryzjax.cli.arguments import parse
from ryzjax.errors import ConfigError, RyzJAXError

__all__ = ["main"]

# Command -> (module, class, summary). A module is imported when its command runs, so that --help is quick.
_COMMANDS = {
    "serve": ("ryzjax.cli.serve", "Serve", "serve a model over an OpenAI-compatible HTTP endpoint"),
    "generate": ("ryzjax.cli.generate", "Generate", "complete prompts given as flags or on standard input"),
    "chat": ("ryzjax.cli.chat", "Chat", "talk to a model in the terminal"),
    "bench serve": (
        "ryzjax.cli.bench",
        "BenchServe",
        "measure throughput and latencies of a running server",
    ),
    "bench offline": ("ryzjax.cli.bench", "BenchOffline", "measure a model in this process, without a server"),
    "eval": ("ryzjax.cli.eval", "Eval", "measure a model by benchmarks, perplexity, or divergence from a reference"),
    "convert": ("ryzjax.cli.convert", "Convert", "write a model as a directory that loads without conversion"),
    "quantize": ("ryzjax.cli.quantize", "Quantize", "write a model in 4 or 8 bits, with a report of what it cost"),
    "finetune": (
        "ryzjax.cli.finetune",
        "Finetune",
        "train an adapter (LoRA, QLoRA, DPO) or all weights of a model",
    ),
    "pretrain": ("ryzjax.cli.pretrain", "Pretrain", "train a model from random weights"),
    "merge": ("ryzjax.cli.merge", "Merge", "write a model with an adapter in its weights, and check its logits"),
    "inspect-batch": (
        "ryzjax.cli.inspect_batch",
        "InspectBatch",
        "show what a model would be trained on, token by token",
    ),
    "info": ("ryzjax.cli.info", "Info", "versions, devices, a model's shape, and which implementation each op uses"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit status, which is 2 for invalid input.

    Invalid input prints one line on standard error. `--debug` or RYZJAX_DEBUG=1 prints the traceback as well.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words or os.environ.get("RYZJAX_DEBUG") == "1"
    words = [word for word in words if word != "--debug"]
    if not words or words[0] in ("-h", "--help"):
        print(_usage())
        return 0 if words else 2
    if words[0] == "--version":
        from ryzjax import __version__

        print(f"ryzjax {__version__}")
        return 0
    try:
        name, rest = _split(words)
        module, cls, _ = _COMMANDS[name]
        return parse(getattr(import_module(module), cls), name, rest).run()
    except RyzJAXError as error:
        if debug:
            traceback.print_exc()
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _split(words: list[str]) -> tuple[str, list[str]]:
    for length in (2, 1):
        name = " ".join(words[:length])
        if name in _COMMANDS:
            return name, words[length:]
    if words[0] == "bench":
        raise ConfigError("bench needs a subcommand: ryzjax bench serve, or ryzjax bench offline")
    raise ConfigError(f"unknown command {words[0]!r}; expected one of: {', '.join(_COMMANDS)}")


def _usage() -> str:
    lines = [f"  {name:<14} {what}" for name, (_, _, what) in _COMMANDS.items()]
    more = ["ryzjax COMMAND --help shows the flags of a command. --debug shows the traceback of an error."]
    return "\n".join(["usage: ryzjax COMMAND [flags]", "", *lines, "", *more])


if __name__ == "__main__":
    sys.exit(main())
