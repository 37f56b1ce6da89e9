"""Makes pages of the site from the Markdown files outside docs/, so that each text has one source.

MkDocs runs this file as a hook. Links between these files, and from them into docs/, are rewritten for the site.
"""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "ryzjax/demo/README.md": "demo-model.md",
}


def page(source: str) -> str:
    """Returns a file's text with the links of the site."""
    text = (ROOT / source).read_text(encoding="utf-8")
    for other, name in PAGES.items():
        text = text.replace(f"]({other})", f"]({name})")
    return text.replace("](docs/", "](")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds the pages to the site."""
    for source, name in PAGES.items():
        files.append(File.generated(config, name, content=page(source)))
    return files
