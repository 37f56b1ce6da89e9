"""Builds the CPU kernels (ryzjax/native) with CMake as the package is built, where there is a C++ compiler.

Without one the package is installed all the same: `ryzjax info` says that XLA's own code runs, and why.
RYZJAX_BUILD_NATIVE=0 leaves them out on purpose; =1 makes their absence an error (wheels are built so).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

LIBRARY = "libryzjax_native.so"


class NativeBuildHook(BuildHookInterface):
    """See the module."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """CMake from the package index, where the machine has none."""
        return [] if shutil.which("cmake") else ["cmake>=3.20"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Puts the library beside the Python files, for wheels and editable installs."""
        wanted = os.environ.get("RYZJAX_BUILD_NATIVE", "")
        if self.target_name != "wheel" or wanted == "0":
            return
        native = Path(self.root, "ryzjax", "native")
        reason = _build(native)
        if reason is not None:
            if wanted == "1":
                raise RuntimeError(f"the CPU kernels could not be built: {reason}")
            self.app.display_warning(f"RyzJAX is installed without its CPU kernels: {reason}")
            return
        build_data["artifacts"].append(f"ryzjax/native/{LIBRARY}")
        build_data["pure_python"] = False
        # Nothing in it depends on Python's version: one wheel a platform.
        build_data["tag"] = f"py3-none-{_platform()}"


def _build(native: Path) -> str | None:
    """Builds the library; the reason why not, where it cannot be."""
    (native / LIBRARY).unlink(missing_ok=True)
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name):
        return "there is no C++ compiler (c++, g++ or clang++)"
    try:
        import jaxlib
    except ImportError:
        return "jaxlib, whose headers they need, is not there while the package is built"
    include = Path(str(jaxlib.__file__)).parent / "include"
    with tempfile.TemporaryDirectory() as folder:
        configure = ["cmake", "-S", str(native), "-B", folder, f"-DXLA_INCLUDE_DIR={include}"]
        compile_all = ["cmake", "--build", folder, "--parallel"]
        for command in (configure, compile_all):
            done = subprocess.run(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
            if done.returncode:
                print(done.stdout, file=sys.stderr)
                return f"`{' '.join(command[:2])}` failed: {done.stdout.strip().splitlines()[-1]}"
        shutil.copy2(Path(folder, LIBRARY), native / LIBRARY)
    return None


def _platform() -> str:
    import sysconfig

    return sysconfig.get_platform().replace("-", "_").replace(".", "_")
