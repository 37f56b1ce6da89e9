"""Training: losses, optimizers, the pure step, the loop around it, and what it leaves behind."""

from __future__ import annotations

__all__: list[str] = []
