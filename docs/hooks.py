"""What MkDocs is to do beyond its pages: README is the first of them, and experiments are files of the site."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add README and the experiments."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=readme))
    for file in sorted((ROOT / "experiments").glob("*.yaml")):
        files.append(File.generated(config, f"experiments/{file.name}", abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Lead links to experiments, which lie beside docs/ in the repository, to those of the site."""
    return re.sub(r"\]\(\.\./((?:\.\./)*experiments/)", r"](\1", markdown)
