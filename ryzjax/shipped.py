"""Where the shipped TOML files are: `configs/` of a checkout, `_configs/` inside an installed wheel."""

from __future__ import annotations

from pathlib import Path

__all__ = ["shipped_path"]


def shipped_path(relative: str) -> Path:
    """Path of a shipped file or folder, such as "sharding/tp.toml"; it may not exist."""
    package = Path(__file__).resolve().parent
    installed = package / "_configs"
    return (installed if installed.is_dir() else package.parent / "configs") / relative
