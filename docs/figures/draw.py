"""Draws the figures of the documentation: python docs/figures/draw.py writes the SVG files beside this script.

The figures are drawn here, and not with Mermaid, so that they look the same on every site and need no script.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

FONT = "font-family='Helvetica, Arial, sans-serif'"
INK, LINE = "#1d2733", "#5b6b7c"
BLUE, GREEN, SAND, GREY, ROSE = "#dbe8f8", "#dcf1e1", "#f7ecd3", "#eceff3", "#f6dfe3"
HEIGHT = 60


class Figure:
    """Boxes and arrows on a white sheet."""

    def __init__(self, width: int, height: int, title: str):
        self.parts = [
            f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
            f"height='{height}' role='img' aria-label='{escape(title, quote=True)}'>",
            "<defs><marker id='head' markerWidth='9' markerHeight='8' refX='8' refY='4' orient='auto'>"
            f"<path d='M0,0 L9,4 L0,8 z' fill='{LINE}'/></marker></defs>",
            f"<rect width='{width}' height='{height}' rx='10' fill='#ffffff'/>",
        ]

    def box(self, x: int, y: int, width: int, title: str, told: str = "", fill: str = GREY, height: int = HEIGHT):
        """A box with a title, and a second line under it."""
        self.parts.append(
            f"<rect x='{x}' y='{y}' width='{width}' height='{height}' rx='8' fill='{fill}' stroke='{LINE}'/>"
        )
        middle = x + width / 2
        self.text(middle, y + height / 2 + (-4 if told else 5), title, size=15, bold=True)
        if told:
            self.text(middle, y + height / 2 + 16, told)

    def text(self, x: float, y: float, text: str, *, size: int = 12, bold: bool = False, anchor: str = "middle"):
        """One line of text."""
        weight = " font-weight='bold'" if bold else ""
        self.parts.append(
            f"<text x='{x:g}' y='{y:g}' {FONT} font-size='{size}'{weight} fill='{INK}' "
            f"text-anchor='{anchor}'>{escape(text)}</text>"
        )

    def arrow(self, x1: float, y1: float, x2: float, y2: float):
        """A line with a head at its end."""
        self.parts.append(
            f"<line x1='{x1:g}' y1='{y1:g}' x2='{x2:g}' y2='{y2:g}' stroke='{LINE}' stroke-width='1.6' "
            "marker-end='url(#head)'/>"
        )

    def save(self, name: str):
        """Writes the file beside this script."""
        text = "\n".join([*self.parts, "</svg>", ""])
        (Path(__file__).parent / f"{name}.svg").write_text(text, encoding="utf-8")


def system():
    """What users call, and the parts it goes through down to the devices."""
    figure = Figure(920, 500, "RyzJAX: entry points, serving and training, one model definition, ops, devices")
    users = (
        ("OpenAI client, curl", "HTTP"),
        ("LLM", "Python, notebooks"),
        ("ryzjax finetune", "LoRA, QLoRA, DPO"),
        ("ryzjax quantize", "4 and 8 bits"),
        ("ryzjax eval", "tasks, perplexity"),
    )
    for i, (title, told) in enumerate(users):
        figure.box(20 + 178 * i, 16, 168, title, told, GREY)
    figure.box(20, 116, 346, "serving", "server, scheduler, paged KV cache", BLUE)
    figure.box(376, 116, 168, "training", "packing, step, checkpoints", GREEN)
    figure.box(554, 116, 168, "quantizing", "calibration, certificate", SAND)
    figure.box(732, 116, 168, "evaluation", "benchmarks, KL", SAND)
    for i in range(5):
        figure.arrow(104 + 178 * i, 76, 104 + 178 * i, 114)
    figure.box(20, 216, 260, "loading", "files to weights on devices", ROSE)
    figure.box(310, 216, 590, "models, layers, LoRA", "one forward pass serves, trains and scores", BLUE)
    for x in (150, 460, 638, 816):
        figure.arrow(x, 176, x, 214)
    figure.box(20, 316, 260, "checkpoint", "safetensors, GGUF, GPTQ, AWQ, PEFT", ROSE)
    figure.arrow(150, 276, 150, 314)
    figure.arrow(280, 246, 308, 246)
    figure.box(310, 316, 290, "ops", "contract, JAX reference, dispatch", GREEN)
    figure.box(610, 316, 290, "sharding", "a layout in TOML: axes to devices", SAND)
    figure.arrow(455, 276, 455, 314)
    figure.arrow(755, 276, 755, 314)
    figure.box(310, 416, 290, "native CPU kernels, or XLA", "AVX-512, AVX2, portable C++", GREEN)
    figure.box(610, 416, 290, "a mesh of devices", "one CPU, or several devices", SAND)
    figure.arrow(455, 376, 455, 414)
    figure.arrow(755, 376, 755, 414)
    figure.save("system")


def chain(name: str, title: str, steps: Sequence[tuple[str, str, str]]):
    """Steps from left to right in rows of four."""
    rows = -(-len(steps) // 4)
    figure = Figure(920, 4 + rows * 92, title)
    for i, (head, told, fill) in enumerate(steps):
        x, y = 16 + 226 * (i % 4), 18 + 92 * (i // 4)
        figure.box(x, y, 206, head, told, fill)
        if i + 1 < len(steps) and i % 4 < 3:
            figure.arrow(x + 206, y + 30, x + 224, y + 30)
        elif i + 1 < len(steps):
            figure.parts.append(
                f"<path d='M{x + 103},{y + 60} v16 H119 v14' fill='none' stroke='{LINE}' stroke-width='1.6' "
                "marker-end='url(#head)'/>"
            )
    figure.save(name)


def main():
    """Draws every figure."""
    system()
    chain(
        "request",
        "The life of a request",
        (
            ("serving/http", "bounds, key, JSON, fields", BLUE),
            ("serving/frontend", "text to tokens, checks", BLUE),
            ("serving/engine", "the engine's own thread", GREEN),
            ("serving/host", "slots, pages, the plan", GREEN),
            ("serving/device", "pack, dispatch the step", SAND),
            ("models, ops", "backbone, head, sampling", SAND),
            ("serving/engine", "commit tokens, free pages", GREEN),
            ("serving/frontend", "tokens to text, to the client", BLUE),
        ),
    )
    chain(
        "weight",
        "The life of a weight",
        (
            ("checkpoint/source", "finds the files", ROSE),
            ("checkpoint/hf, families", "config, names of tensors", ROSE),
            ("models/registry", "an abstract model", BLUE),
            ("loading/weight_plan", "each weight's format", GREEN),
            ("checkpoint", "where each weight is stored", ROSE),
            ("loading/load", "reads each device's shard", GREEN),
            ("quant", "quantizes, with --weights", SAND),
            ("sharding", "an array on the devices", SAND),
        ),
    )
    chain(
        "training-step",
        "The life of a training step",
        (
            ("data/training", "rows, packed batches", BLUE),
            ("training/start", "base, masters, adapter", ROSE),
            ("training/programs", "compiles the step", GREEN),
            ("training/run", "the loop", GREEN),
            ("models/scan_layers", "forward over the layers", SAND),
            ("training/objectives", "loss, a chunk at a time", SAND),
            ("training/optimizers", "gradients to an update", SAND),
            ("training/run", "log, checkpoint, export", GREEN),
        ),
    )


if __name__ == "__main__":
    main()
