"""Tokenizers that the tests of this folder share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import fake_tokenizers

from ryzjax.data.tokenizer import Tokenizer


@pytest.fixture(scope="session", params=["byte_level", "byte_fallback"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Each kind of tokenizer in turn."""
    made = getattr(fake_tokenizers, request.param)()
    return Tokenizer.load(fake_tokenizers.save(made, tmp_path_factory.mktemp(request.param)))
