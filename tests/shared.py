"""Where the folder of shared models, tokenizers and texts is: beside the checkout, or nowhere.

Tests that need it are extra: a clone without the folder runs every test marked `essential`.
RYZJAX_TESTS_SHARED names another folder, or is `none` to run as such a clone does.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["SHARED", "needs_shared"]

_NOWHERE = Path(os.devnull) / "shared"
_NAMED = os.environ.get("RYZJAX_TESTS_SHARED") or Path(__file__).resolve().parents[2] / "shared"

SHARED = _NOWHERE if _NAMED == "none" else Path(_NAMED)
"""The folder; it may be absent."""

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared material is not beside this checkout")
"""Marks a test that reads the folder."""
