"""Rules for the source tree: imports run downwards, the scheduler is free of jax, nothing private or unsafe is used."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "ryzjax"
FILES = sorted(PACKAGE.rglob("*.py"))

# The rows run from top to bottom. A module imports from its own folder and from lower rows. The folders of one row do
# not import each other.
ROWS = (
    ("__main__",),
    ("cli",),
    ("bench", "evaluation"),
    ("serving", "training", "quantizing", "client"),
    ("loading",),
    ("quant",),
    ("checkpoint", "data"),
    ("lora",),
    ("models",),
    ("layers",),
    ("ops",),
    ("pallas", "native", "sharding"),
    ("qarray", "gguf_header"),
    ("errors", "dims", "bits", "batch", "attention_settings", "obs", "shipped", "api_key"),
)
# The same order within folders that have subfolders.
INNER_ROWS = {
    "serving": (("http",), ("frontend",), ("engine",), ("device",), ("host",), ("messages",)),
    "serving/http": (
        ("server",),
        ("app",),
        ("adapter_routes", "system_routes"),
        ("openai",),
        ("sse", "prompts"),
        ("generation", "pieces", "context"),
        ("guard",),
        ("answer", "config", "disconnect", "errors", "token_texts", "workers"),
    ),
    "training": (
        ("pretrain", "plan"),
        ("finetune",),
        ("run",),
        ("programs",),
        ("step", "start"),
        ("objectives", "optimizers"),
        ("model",),
        ("row_chunks", "config"),
    ),
    "quantizing": (
        ("merge",),
        ("quantize", "report_table", "kv_scales", "sensitivity"),
        ("quantize_block", "layer_report", "workspace", "kv_calibration"),
        ("quantize_group", "hidden_states"),
        ("moments",),
        ("block_runner", "calibration", "input_groups", "shards"),
    ),
    "loading": (
        ("open_model",),
        ("weight_plan",),
        ("quantized_load",),
        ("load",),
        ("orbax", "dummy", "model_config"),
        ("buffers", "progress", "text_files"),
    ),
    "quant": (
        ("quantize_matrix",),
        ("encode_matrix", "recipe"),
        ("awq", "gptq", "hqq", "quantized_rows"),
        ("grid", "nf4", "scheme"),
    ),
    "checkpoint": (
        ("open_checkpoint",),
        ("hf", "kv_scales", "peft", "quantized"),
        ("families", "source"),
        ("gguf", "mxfp4", "weight_files"),
        ("hub", "json_object", "safetensors", "safetensors_write", "stored_weight"),
        ("certificate", "config_fields", "tensor_file"),
    ),
}
HEIGHT = {name: -row for row, names in enumerate(ROWS) for name in names}
# `errors` is below the rest of its row.
SAME_ROW_ALLOWED = {("obs", "errors"), ("api_key", "errors")}


def label(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> Iterator[str]:
    """Returns every module that the file imports anywhere. `from a import b` counts as both a and a.b."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{label(path)}:{node.lineno}: relative import; write it in full"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def home(module: str) -> str | None:
    """Returns the folder or file of the package that a module belongs to, such as "ops" for "ryzjax.ops.norm"."""
    parts = module.split(".")
    return parts[1] if parts[0] == "ryzjax" and len(parts) > 1 and parts[1] in HEIGHT else None


def upward(importer: str, imported: str) -> bool:
    """Whether an import runs upwards."""
    if importer == imported or (importer, imported) in SAME_ROW_ALLOWED:
        return False
    return HEIGHT[imported] >= HEIGHT[importer]


def test_the_rule_itself() -> None:
    assert not upward("cli", "serving")
    assert not upward("ops", "errors")
    assert upward("bench", "cli")
    assert upward("models", "checkpoint")
    assert upward("serving", "training")
    assert home("ryzjax.serving.host.pages") == "serving"
    assert home("jax.numpy") is None


def test_every_folder_has_a_row() -> None:
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in FILES} - {"__init__"}
    assert names <= set(HEIGHT), "place new folders in ROWS"


@pytest.mark.parametrize("path", [path for path in FILES if path.parent != PACKAGE], ids=label)
def test_imports_run_downwards(path: Path) -> None:
    importer = path.relative_to(PACKAGE).parts[0]
    wrong = sorted({name for name in imports(path) if (to := home(name)) is not None and upward(importer, to)})
    assert not wrong, f"{label(path)} imports upwards: {wrong}"


@pytest.mark.parametrize("folder", INNER_ROWS)
def test_imports_run_downwards_within_a_folder(folder: str) -> None:
    height = {name: -row for row, names in enumerate(INNER_ROWS[folder]) for name in names}
    files = [path for path in FILES if path.is_relative_to(PACKAGE / folder) and path.parent / "__init__.py" != path]
    part_of = {path: path.relative_to(PACKAGE / folder).parts[0].removesuffix(".py") for path in files}
    assert set(part_of.values()) == set(height), f"place each part of {folder} in INNER_ROWS"
    wrong = set()
    for path, importer in part_of.items():
        for name in imports(path):
            prefix, _, rest = name.partition(f"ryzjax.{folder.replace('/', '.')}.")
            imported = rest.split(".")[0]
            if not prefix and imported in height and imported != importer and height[imported] >= height[importer]:
                wrong.add(f"{label(path)} imports {name}")
    assert not wrong, f"imports run upwards: {sorted(wrong)}"


def test_top_level_modules_import_only_their_own_row() -> None:
    for path in PACKAGE.glob("*.py"):
        if path.stem != "__init__":
            wrong = sorted({n for n in imports(path) if (to := home(n)) is not None and upward(path.stem, to)})
            assert not wrong, f"{label(path)} imports upwards: {wrong}"


def loaded_by(statement: str) -> set[str]:
    """Returns the top-level modules that a new interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*sorted({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


HOST = sorted(f"ryzjax.serving.host.{path.stem}" for path in (PACKAGE / "serving" / "host").glob("[!_]*.py"))
COMMANDS = [
    f"ryzjax.cli.{name}"
    for name in (
        *("main", "serve", "generate", "chat", "eval", "quantize", "info"),
        *("finetune", "pretrain", "merge", "inspect_batch"),
    )
]


@pytest.mark.parametrize("modules", [["ryzjax"], HOST, COMMANDS], ids=["package", "host", "cli"])
def test_imports_without_jax(modules: list[str]) -> None:
    assert modules
    heavy = {"jax", "jaxlib", "flax", "torch", "transformers"}
    loaded = loaded_by("import " + ", ".join(modules))
    assert "ryzjax" in loaded
    assert not loaded & heavy, f"{modules} loads {sorted(loaded & heavy)}"


@pytest.mark.parametrize("path", FILES, ids=label)
def test_no_private_jax_and_no_pickle(path: Path) -> None:
    banned = ("jax._src", "pickle", "cloudpickle", "dill", "shelve", "marshal")
    wrong = sorted({name for name in imports(path) for bad in banned if name == bad or name.startswith(bad + ".")})
    assert not wrong, f"{label(path)} imports {wrong}"
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute):
            assert node.attr != "_src", f"{label(path)}:{node.lineno}: private {ast.unparse(node)}"
        if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
            value = ast.unparse(node.value)
            assert value == "False", f"{label(path)}:{node.lineno}: {node.arg}={value}"


def test_partition_specs_are_made_in_sharding_only() -> None:
    makers = set()
    for path in FILES:
        names = {"PartitionSpec"}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ImportFrom):
                names |= {a.asname for a in node.names if a.name == "PartitionSpec" and a.asname}
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in names:
                makers.add(path.relative_to(PACKAGE).parts[0])
    # ops, pallas and native may make them for the shard_map around a kernel.
    assert makers <= {"sharding", "ops", "pallas", "native"}
    assert "sharding" in makers


def undocumented(path: Path) -> Iterator[str]:
    """Returns the public functions, classes and methods, and the module itself, that have no docstring."""
    module = tree(path)
    if ast.get_docstring(module) is None:
        yield f"{label(path)}: module"
    for node in module.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if ast.get_docstring(node) is None:
                yield f"{label(path)}:{node.lineno}: {node.name}"
            if isinstance(node, ast.ClassDef) and not is_protocol(node):
                yield from (
                    f"{label(path)}:{inner.lineno}: {node.name}.{inner.name}"
                    for inner in node.body
                    if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
                    and not inner.name.startswith("_")
                    and ast.get_docstring(inner) is None
                    and not inherits_docstring(path, node.name, inner.name)
                )


def is_protocol(node: ast.ClassDef) -> bool:
    return any(ast.unparse(base).split("[")[0].endswith("Protocol") for base in node.bases)


def inherits_docstring(path: Path, owner: str, method: str) -> bool:
    """Whether a base class documents the method. `help()` shows that docstring for an override without one."""
    module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
    return inspect.getdoc(getattr(getattr(module, owner), method)) is not None


@pytest.mark.parametrize("path", FILES, ids=label)
def test_public_names_have_docstrings(path: Path) -> None:
    missing = list(undocumented(path))
    assert not missing, "no docstring: " + "; ".join(missing)
