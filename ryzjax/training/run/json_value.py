"""Json: the type of values that run.json and a checkpoint's state hold."""

from __future__ import annotations

__all__ = ["Json"]

Json = str | int | float | bool | None | list["Json"] | dict[str, "Json"]
