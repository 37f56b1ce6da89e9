"""The build hook builds the kernels if there is a compiler, and else an installation that works without them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]


class App:
    """A stand-in for the object through which a hook of hatchling prints messages."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def display_warning(self, message: str) -> None:
        self.warnings.append(message)


@pytest.fixture
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def native(tmp_path: Path) -> Path:
    """The native folder of a source tree with a library that an earlier build left behind."""
    folder = tmp_path / "ryzjax" / "native"
    folder.mkdir(parents=True)
    (folder / "libryzjax_native.so").write_bytes(b"stale")
    return folder


def build(module: ModuleType, root: Path, target: str = "wheel") -> tuple[App, dict[str, Any]]:
    app, data = App(), {"artifacts": []}
    module.NativeBuildHook(str(root), {}, None, None, str(root), target, app).initialize("standard", data)
    return app, data


def test_without_a_compiler_the_package_is_installed_and_says_so(
    module: ModuleType, native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.delenv("RYZJAX_BUILD_NATIVE", raising=False)
    app, data = build(module, tmp_path)
    assert len(app.warnings) == 1 and "no C++ compiler" in app.warnings[0]
    assert data == {"artifacts": []}  # the wheel is for every platform
    assert not (native / "libryzjax_native.so").exists()  # the old library is not shipped


def test_a_wheel_that_must_have_them_is_not_built_without(
    module: ModuleType, native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("RYZJAX_BUILD_NATIVE", "1")
    with pytest.raises(RuntimeError, match=r"could not be built: there is no C\+\+ compiler"):
        build(module, tmp_path)


def test_code_that_does_not_compile_is_told(
    module: ModuleType, native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if not any(module.shutil.which(name) for name in ("c++", "g++", "clang++")) or not module.shutil.which("cmake"):
        pytest.skip("no compiler or no cmake")
    monkeypatch.delenv("RYZJAX_BUILD_NATIVE", raising=False)
    (native / "CMakeLists.txt").write_text("message(FATAL_ERROR nothing_to_build)\n")
    app, data = build(module, tmp_path)
    assert "`cmake -S` failed" in app.warnings[0] and data == {"artifacts": []}


def test_they_can_be_left_out_and_an_sdist_has_none(
    module: ModuleType, native: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("RYZJAX_BUILD_NATIVE", "0")
    app, data = build(module, tmp_path)
    assert app.warnings == [] and data == {"artifacts": []}
    monkeypatch.delenv("RYZJAX_BUILD_NATIVE")
    app, data = build(module, tmp_path, "sdist")
    assert app.warnings == [] and data == {"artifacts": []}
