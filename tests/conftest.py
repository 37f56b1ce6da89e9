"""Test set-up: eight fake CPU devices, no network, the models tests run on, and what a run must prove."""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import shutil
import sys
from collections.abc import Generator, Iterator
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
if os.environ.get("RYZJAX_TESTS_COMPILER", "quick") == "quick":
    # A quarter of the time of `make test` would be XLA's newer code generator for fusions. The other lanes of .ci/run
    # set RYZJAX_TESTS_COMPILER=default and test what it makes.
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"

import jax
import pytest
from jaxtyping import install_import_hook

from tests.shared import SHARED
from tests.typecheck import CHECKER

# Shapes and dtypes of annotated arrays are checked where arrays are computed with.
CHECKED = ("batch", "layers", "lora", "models", "ops", "qarray", "quant", "training")
install_import_hook([f"ryzjax.{name}" for name in CHECKED], CHECKER)

# About half of the time of these tests is XLA compiling tiny programs, and many tests need the same ones. All processes
# of a run (workers, servers, commands) and later runs share one compile cache. `make clean` removes it.
COMPILE_CACHE = os.environ.setdefault(
    "RYZJAX_TESTS_COMPILE_CACHE", str(Path(__file__).parents[1] / ".pytest_cache" / "programs")
)
MOST_CACHED_BYTES = 2**31
for setting, value in (
    ("jax_compilation_cache_dir", COMPILE_CACHE),
    ("jax_persistent_cache_min_compile_time_secs", 0.0),
    ("jax_persistent_cache_min_entry_size_bytes", -1),
):
    jax.config.update(setting, value)
    os.environ[setting.upper()] = str(value)

jax.config.update("jax_disable_most_optimizations", True)

# Folders whose tests forbid implicit promotion: arrays of two dtypes meet in no operation by accident.
STRICT = (
    "layers",
    "lora",
    "models",
    "native",
    "ops",
    "quant",
    "quantizing",
    "training/objectives",
    "training/optimizers",
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds --essential-must-run."""
    parser.addoption(
        "--essential-must-run",
        action="store_true",
        help="a skipped test that is marked essential fails",
    )


# The files that take longest, first: with two workers none of them must be the last to start.
LONGEST = (
    "training/test_offload.py",
    "quantizing/test_quantize.py",
    "training/test_finetune.py",
    "training/test_step.py",
    "serving/test_adapters.py",
    "models/test_kv_cache.py",
    "models/test_layouts.py",
    "serving/test_kv_dtype.py",
    "native/test_kernels.py",
    "serving/test_server_process.py",
    "serving/test_batch_invariance.py",
    "test_demo.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first. The order within a file stays."""
    here = Path(__file__).parent
    place = {here / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turns a skip of an essential test into a failure, where that is asked for."""
    report = yield
    if (
        report.skipped
        and not hasattr(report, "wasxfail")
        and item.get_closest_marker("essential")
        and item.config.getoption("--essential-must-run")
    ):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} is essential and must run. {reason}"
    return report


def pytest_sessionstart(session: pytest.Session) -> None:
    """Empties a compile cache that has grown too large. A worker of pytest-xdist leaves that to its parent."""
    if not hasattr(session.config, "workerinput") and Path(COMPILE_CACHE).is_dir():
        with os.scandir(COMPILE_CACHE) as entries:
            size = sum(entry.stat().st_size for entry in entries)
        if size > MOST_CACHED_BYTES:
            shutil.rmtree(COMPILE_CACHE)


def peak_mib() -> int:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: object, error: object) -> None:
    """Keeps what a worker of pytest-xdist tells as it ends."""
    PEAKS[node.gateway.id] = getattr(node, "workeroutput", {}).get("peak_mib", 0)  # pyright: ignore


PEAKS: dict[str, int] = {}
"""Worker -> MiB."""


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Shows the largest resident memory of each process that ran tests."""
    peaks = PEAKS or {"this process": peak_mib()}
    terminalreporter.write_line("peak memory: " + ", ".join(f"{name} {mib} MiB" for name, mib in peaks.items()))


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A run in which every test was skipped proves nothing: it exits as one without tests does."""
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["peak_mib"] = peak_mib()  # pyright: ignore[reportAttributeAccessIssue]
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    ran = reporter is None or session.config.option.collectonly or reporter.stats.keys() & {"passed", "xfailed"}
    if exitstatus == pytest.ExitCode.OK and not ran and not hasattr(session.config, "workerinput"):
        session.exitstatus = pytest.ExitCode.NO_TESTS_COLLECTED


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of shared models, configs and data. Tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("the shared material is not beside this checkout")
    return SHARED


@pytest.fixture(scope="session")
def stories(shared: Path) -> Path:
    """stories260K: a real trained Llama of 260K parameters."""
    return shared / "models" / "stories260K"


@pytest.fixture(scope="session")
def compile_cache() -> str:
    """The compile cache that every process of the run shares."""
    return COMPILE_CACHE


@pytest.fixture(scope="module", autouse=True)
def programs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sets how a module's programs are traced and compiled, and drops them after it.

    Most are compiled without XLA's expensive passes. Tests of what the optimizer decides, of bits and bytes, and those
    whose programs run longer than they compile are marked `optimized`, as a whole module.
    """
    here = request.path.relative_to(Path(__file__).parent).as_posix()
    strict = here.startswith(tuple(f"{folder}/" for folder in STRICT))
    jax.config.update("jax_disable_most_optimizations", request.node.get_closest_marker("optimized") is None)
    with jax.numpy_dtype_promotion("strict" if strict else "standard"):
        yield
    jax.config.update("jax_disable_most_optimizations", True)
    jax.clear_caches()
    gc.collect()
    return_freed_memory()


MOST_MIB = 1500
"""The resident memory above which freed memory is returned after a test, and not only after a module."""


def resident_mib() -> int:
    """The resident memory of this process; 0 where it is not known."""
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def return_freed_memory() -> None:
    """Returns freed memory to the system. glibc keeps what XLA's compiler frees: half of a worker's resident memory."""
    if sys.platform == "linux":
        getattr(ctypes.CDLL(None), "malloc_trim", lambda pad: pad)(0)


@pytest.fixture(autouse=True)
def bounded_memory() -> Iterator[None]:
    """Keeps a worker's resident memory down within modules that compile much."""
    yield
    if resident_mib() > MOST_MIB:
        return_freed_memory()
        if resident_mib() > MOST_MIB:
            jax.clear_caches()
            gc.collect()
            return_freed_memory()
