"""What the documentation shows works: code runs, experiments are experiments, commands are commands."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from genview.cli import app
from genview.experiment import Examination, Experiment, is_examination, load

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def blocks(page: Path, language: str) -> Iterator[str]:
    yield from re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)


def named(language: str) -> list[object]:
    found = [(page, text) for page in PAGES for text in blocks(page, language)]
    return [pytest.param(text, id=f"{page.relative_to(ROOT)}-{n}") for n, (page, text) in enumerate(found)]


def commands() -> list[str]:
    """Lines of blocks of code, indented or fenced, that begin with genview; options in brackets are left out."""
    found = []
    for page in PAGES:
        for line in page.read_text().replace("\\\n", " ").splitlines():
            words = line.removeprefix("    ").strip().removeprefix(".venv/bin/")
            if re.match(r"genview [a-z]", words) and (line.startswith("    ") or "`" not in line):
                found += [part.strip() for part in words.split(" #")[0].split("&&")]
    return sorted(set(found))


@pytest.mark.parametrize("text", [block for block in named("python") if "export.md" not in str(block)])
def test_code_runs(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shown.py").write_text(text)
    runpy.run_path("shown.py", run_name="shown")


@pytest.mark.parametrize("text", named("yaml"))
def test_experiments_are_experiments(text: str, tmp_path: Path) -> None:
    """Those that show only some of the keys are completed; of studies and exported folders others take care."""
    content = yaml.safe_load(text)
    if "vary" in content:
        pytest.skip("a study: see test_study_grid.py")
    file = tmp_path / "experiment.yaml"
    file.write_text(yaml.safe_dump({"images": {"kind": "folder", "root": "PHOTOS"}, **content}))
    assert load(Examination if is_examination(file) else Experiment, file, [])


@pytest.mark.parametrize("line", commands())
def test_commands_are_commands(line: str) -> None:
    """Verb and options exist, and what must be given is; nothing is run."""
    words = shlex.split(line)[1:]
    group: Any = typer.main.get_command(app)
    with group.make_context("genview", words, resilient_parsing=False) as context:
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        command.make_context(name, [word for word in rest if word != "…"], parent=context).close()


def test_every_link_inside_the_documentation_leads_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_on_the_site() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())) - {"index.md"}
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
