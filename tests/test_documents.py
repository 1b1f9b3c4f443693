"""What the documentation shows works: code runs, experiments are experiments, commands are commands."""

from __future__ import annotations

import re
import runpy
import shlex
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pytest
import typer
import yaml

from genview.cli import app
from genview.evaluation import Evaluation
from genview.experiment import (
    Examination,
    Experiment,
    FitExperiment,
    LoraExperiment,
    load,
    load_study,
    read_yaml,
    verb_of,
)
from genview.generators import GeneratorSettings
from genview.images import ImageSettings
from genview.launch import Launcher
from genview.methods import Method
from genview.quality import QualitySettings
from genview.training.optimizer import Optimizer

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
EXPERIMENTS = sorted((ROOT / "experiments").glob("*.yaml"))
KINDS = (Evaluation, GeneratorSettings, ImageSettings, Launcher, Method, Optimizer, QualitySettings)


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


def commands_that_set() -> list[str]:
    """Those with --set: of `commands`, within sentences, and in the first lines of experiments."""
    within = [line for page in PAGES for line in re.findall(r"`(genview [a-z][^`]*)`", page.read_text())]
    first = [file.read_text().splitlines()[0] for file in EXPERIMENTS]
    found = [*commands(), *within, *("genview " + line.partition("genview ")[2] for line in first)]
    return sorted({line for line in found if " --set " in line})


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
    assert load(Examination if verb_of(file) == "evaluate" else Experiment, file, [])


@pytest.mark.parametrize("line", commands())
def test_commands_are_commands(line: str) -> None:
    """Verb and options exist, and what must be given is; nothing is run."""
    words = shlex.split(line)[1:]
    group: Any = typer.main.get_command(app)
    with group.make_context("genview", words, resilient_parsing=False) as context:
        name, command, rest = group.resolve_command(context, [*context._protected_args, *context.args])
        assert command is not None
        command.make_context(name, [word for word in rest if word != "…"], parent=context).close()


@pytest.mark.parametrize("line", commands_that_set())
def test_what_commands_set_can_be_set(line: str, tmp_path: Path) -> None:
    verb, place, *rest = shlex.split(line)[1:]
    sets = [text for option, text in pairwise(rest) if option == "--set"]
    file = ROOT / place
    if place == "FILE":
        file = tmp_path / "experiment.yaml"
        file.write_text("images: {kind: folder, root: PHOTOS}\ngenerator: {kind: unclip}")
    if verb_of(file) == "study":
        assert load_study(file, sets)
        return
    other = LoraExperiment if "lora" in read_yaml(file) else FitExperiment if verb == "fit-generator" else Experiment
    assert load(Examination if verb_of(file) == "evaluate" else other, file, sets)


def test_settings_of_every_kind_are_on_the_pages_about_python() -> None:
    shown = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    names = {kind.__name__ for kinds in KINDS for kind in get_args(kinds)}
    assert {name for name in names if f".{name}\n" not in shown} == set()


def test_every_link_inside_the_documentation_leads_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


def test_every_page_is_on_the_site() -> None:
    listed = set(re.findall(r"[\w/-]+\.md", (ROOT / "mkdocs.yml").read_text())) - {"index.md"}
    assert listed == {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}
