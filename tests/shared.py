"""The path of the folder of shared models, tokenizers and texts, which may be beside the checkout.

The tests that need it are extra: a clone without the folder runs every test marked `essential`. RYZJAX_TESTS_SHARED
names another folder. If it is `none`, the tests run as in a clone without the folder.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

__all__ = ["SHARED", "needs_shared"]

_NOWHERE = Path(os.devnull) / "shared"
_NAMED = os.environ.get("RYZJAX_TESTS_SHARED") or Path(__file__).resolve().parents[2] / "shared"

SHARED = _NOWHERE if _NAMED == "none" else Path(_NAMED)
"""The folder, which may be absent."""

needs_shared = pytest.mark.skipif(not SHARED.is_dir(), reason="the shared material is not beside this checkout")
"""Marks a test that reads the folder."""
