"""What is shipped beside the code: TOML files (`configs/` of a checkout, `_configs/` inside an installed wheel) and the
demo model, a tiny chat model that `ryzjax pretrain --config demo` trained."""

from __future__ import annotations

from pathlib import Path

__all__ = ["DEMO_MODEL", "demo_folder", "demo_notice", "shipped_path"]

DEMO_MODEL = "ryzjax/demo"
"""What the demo model is called wherever a model is named; it is served where none is."""


def shipped_path(relative: str) -> Path:
    """Path of a shipped file or folder, such as "sharding/tp.toml"; it may not exist."""
    package = Path(__file__).resolve().parent
    installed = package / "_configs"
    return (installed if installed.is_dir() else package.parent / "configs") / relative


def demo_folder() -> Path:
    """The demo model's directory: config.json, safetensors, tokenizer, and README.md, its data card."""
    return Path(__file__).resolve().parent / "demo"


def demo_notice() -> str:
    """What somebody who did not name a model is to know."""
    return (
        f"{DEMO_MODEL} is the demo model that comes with RyzJAX: tiny, and trained on synthetic rows alone "
        f"({demo_folder() / 'README.md'} says what it can do). Name a model to run another."
    )
