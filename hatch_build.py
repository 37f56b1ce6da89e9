"""Builds the CPU kernels (ryzjax/native) with CMake while the package is built, if there is a C++ compiler.

If the kernels cannot be built, the package is installed without them. `ryzjax info` then says that XLA's own code runs,
and why. RYZJAX_BUILD_NATIVE=0 skips the kernels. RYZJAX_BUILD_NATIVE=1 makes a failed build an error. Wheels are built
with it.
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
    """Adds the shared library of the CPU kernels to the package."""

    PLUGIN_NAME = "custom"

    def dependencies(self) -> list[str]:
        """Returns CMake from the package index if the machine has no CMake."""
        return [] if shutil.which("cmake") else ["cmake>=3.20"]

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Builds the library next to the Python files, for wheels and editable installs."""
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
        # The library does not depend on the version of Python, so one wheel per platform is enough.
        build_data["tag"] = f"py3-none-{_platform()}"


def _build(native: Path) -> str | None:
    """Builds the library. Returns None, or the reason why it could not be built."""
    (native / LIBRARY).unlink(missing_ok=True)
    if not any(shutil.which(name) for name in (os.environ.get("CXX", ""), "c++", "g++", "clang++") if name):
        return "there is no C++ compiler (c++, g++ or clang++)"
    try:
        import jaxlib
    except ImportError:
        return "jaxlib, whose headers the build needs, is not installed in the build environment"
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
