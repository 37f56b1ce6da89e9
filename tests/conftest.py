"""Test set-up: eight fake CPU devices, no network, and the models tests run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared models, configs and data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared material is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """stories260K: a real trained Llama of 260K parameters."""
    return shared / "models" / "stories260K"


@pytest.fixture(scope="session")
def compile_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A compile cache the whole session shares: the same tiny programs are compiled in many tests."""
    yield str(tmp_path_factory.mktemp("compile"))
