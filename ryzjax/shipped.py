"""The files that come with the code: TOML files and the demo model.

The TOML files are in `configs/` of a checkout and in `_configs/` of an installed wheel. The demo model is a tiny chat
model that `ryzjax pretrain --config demo` trained.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["DEMO_MODEL", "demo_folder", "demo_notice", "shipped_path"]

DEMO_MODEL = "ryzjax/demo"
"""The name of the demo model. It is the default model of `serve`, `generate`, `chat` and `eval`."""


def shipped_path(relative: str) -> Path:
    """Returns the path of a shipped file or folder, such as "sharding/tp.toml". It may not exist."""
    package = Path(__file__).resolve().parent
    installed = package / "_configs"
    return (installed if installed.is_dir() else package.parent / "configs") / relative


def demo_folder() -> Path:
    """Returns the directory of the demo model, with its weights, tokenizer and model card (README.md)."""
    return Path(__file__).resolve().parent / "demo"


def demo_notice() -> str:
    """Returns the notice for users who did not name a model."""
    return (
        f"{DEMO_MODEL} is the demo model that comes with RyzJAX. It is tiny and was trained only on synthetic rows "
        f"({demo_folder() / 'README.md'} says what it can do). Name a model to run another one."
    )
