"""Generates the API reference of the site: one page for each package, with every public name of its modules.

MkDocs runs this file as a hook (`hooks` in mkdocs.yml). It lists the files of `ryzjax/` and imports nothing:
mkdocstrings reads the signatures and docstrings from the source.
"""

from __future__ import annotations

import ast
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
SECTION = "API reference"


def packages() -> list[str]:
    """Returns the packages of RyzJAX, "ryzjax" first."""
    folders = sorted(path.parent.relative_to(ROOT) for path in (ROOT / "ryzjax").rglob("__init__.py"))
    return [".".join(folder.parts) for folder in folders]


def modules(package: str) -> list[str]:
    """Returns the modules directly in a package, those without public names aside."""
    folder = ROOT.joinpath(*package.split("."))
    names = (file.stem for file in sorted(folder.glob("*.py")) if not file.stem.startswith("_"))
    return [f"{package}.{name}" for name in names if has_public_names(folder / f"{name}.py")]


def has_public_names(file: Path) -> bool:
    """Whether a module defines anything without a leading underscore."""
    body = ast.parse(file.read_text(encoding="utf-8")).body
    defined = (node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef))
    assigned = (
        target.id
        for node in body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    )
    return any(not name.startswith("_") for name in (*defined, *assigned))


def page(package: str) -> str:
    """Returns the Markdown of a package's page."""
    lines = [f"# `{package}`", "", f"::: {package}", "    options:", "      members: false", ""]
    for module in modules(package):
        lines += [f"## `{module}`", "", f"::: {module}", ""]
    return "\n".join(lines)


def source(package: str) -> str:
    """Returns the page of a package, relative to docs/."""
    return f"reference/{package}.md"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds the generated pages to the navigation."""
    assert config.nav is not None, "mkdocs.yml has a nav"
    config.nav.append({SECTION: [{package: source(package)} for package in packages()]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the generated pages to the site."""
    for package in packages():
        files.append(File.generated(config, source(package), content=page(package)))
    return files
