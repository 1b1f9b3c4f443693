"""The grid of a study: its runs in order, what they share, and what is refused."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from genview.errors import UserError
from genview.experiment import Grid, load_study, run_study, study_cost
from genview.experiment.grid import laid_over
from genview.experiment.sharing import Shared, link, making_of
from genview.experiment.study import Runs
from genview.launch import Here
from genview.methods import SimSiam
from genview.noise import Random
from made_studies import STUDY, made_study, silent


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_study(tmp_path_factory.mktemp("study"))


def test_images_without_labels_are_refused(file: Path, tmp_path: Path) -> None:
    over = [f"experiment.images.root={file.parent / 'train' / 'colour0'}", "experiment.test=null"]
    with pytest.raises(UserError, match="no labels to score its runs by"):
        run_study(load_study(file, over), tmp_path, Here(), silent)


def test_workers_are_handed_the_runs(file: Path, tmp_path: Path) -> None:
    """What launchers send to other processes, and what they ask of it."""
    sent = pickle.loads(pickle.dumps(Runs(load_study(file), tmp_path)))
    assert isinstance(sent, Runs)
    assert sent.grid == load_study(file)
    assert not sent.finished(0)


def test_check_tells_the_runs_and_their_cost(file: Path, said: Callable[..., Any]) -> None:
    done = said("check", file)
    assert done.returncode == 0, done.stderr
    for text in ("runs: 4 (2 variants, 2 seeds)", "views for 2 runs", "generate:", "4 runs of simsiam, each", "all:"):
        assert text in done.stdout


def test_trainings_that_cost_the_same_are_timed_once(file: Path) -> None:
    """Rates do not change what a step costs; another length does."""
    rates = {str(rate): {"training": {"optimizer": {"kind": "sgd", "rate": rate}}} for rate in (0.1, 0.2)}
    lengths = {"short": {}, "long": {"training": {"length": "9 steps"}}}
    varied = {"rate": rates, "length": lengths, "views": {"baseline": {"generator": None}}}
    told = [*study_cost(grid(file, vary=varied, compare={"views": "baseline"}))]
    assert [line.partition("\n")[0] for line in told if "simsiam" in line] == ["4 runs of simsiam, each"] * 2


def grid(file: Path, **changes: Any) -> Grid:
    path = file.parent / "changed.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return load_study(path)


def test_all_variants_come_with_the_first_seed_before_the_next(file: Path) -> None:
    found = grid(file, vary={"gamma": {0.5: {"quality": {"gamma": 0.5}}, 2: None}, **STUDY["vary"]})  # type: ignore[dict-item]
    assert [(run.variants, run.experiment.seed) for run in found.runs] == [
        ((gamma, views), seed)
        for seed in (0, 1)
        for gamma in ("0.5", "2")
        for views in ("baseline", "adaptive + quality")
    ]
    assert found.runs[0].folder == Path("runs/0-5/baseline/seed-0")
    assert found.runs[0].experiment.quality is None, "a later axis is laid over an earlier one"
    quality = found.runs[1].experiment.quality
    assert quality is not None
    assert (quality.gamma, quality.encoder) == (0.5, "generator")
    assert not any(run.experiment.baseline for run in found.runs)


def test_names_are_taken_as_they_are_written(file: Path) -> None:
    """Numbers, blanks, and letters of any script, where things are varied and where they are compared."""
    varied: dict[Any, Any] = {"gamma": {0.5: {}, "без  весов": {"quality": None}, "für": None, "fär": None}}
    found = grid(file, vary=varied, compare={"gamma": 0.5})
    assert found.design(Path()).reference == "0.5"
    assert [run.folder.parent for run in found.runs[:4]] == [
        Path("runs", name) for name in ("0-5", "без-весов", "für", "fär")
    ]
    assert grid(file, vary=varied, compare={"gamma": "без   весов"}).design(Path()).reference == "без весов"


def test_views_are_made_with_the_seed_of_the_experiment_whatever_seeds_there_are(file: Path) -> None:
    runs = [
        Runs(load_study(file, sets), Path())
        for sets in (["seeds=[0, 1]"], ["seeds=[1, 0, 5]"], ["experiment.seed=7"])
    ]
    makings = [found.making(1) for found in runs]
    assert makings[0] == makings[1] != makings[2]
    assert [making and making.seed for making in makings] == [0, 0, 7]


def test_mappings_merge_and_another_kind_replaces_the_whole() -> None:
    base = {
        "method": {"kind": "simsiam", "projection": 8},
        "training": {"batch": 8, "backbone": {"name": "a"}},
        "x": [1],
    }
    assert laid_over(base, {"training": {"backbone": {"args": {}}}, "x": [2, 3]}) == {
        "method": {"kind": "simsiam", "projection": 8},
        "training": {"batch": 8, "backbone": {"name": "a", "args": {}}},
        "x": [2, 3],
    }
    assert laid_over(base, {"method": {"kind": "moco_v2"}})["method"] == {"kind": "moco_v2"}
    assert laid_over(base, {"method": {"kind": "simsiam", "bottleneck": 4}})["method"]["projection"] == 8
    assert laid_over(base, {"method": None})["method"] is None
    assert laid_over({"method": None}, {"method": {"queue": 3}}) == {"method": {"queue": 3}}
    assert base["training"] == {"batch": 8, "backbone": {"name": "a"}}, "the original is left alone"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": []}, "one at least"),
        ({"seeds": [1, 1]}, "different numbers"),
        ({"vary": {}}, "an axis at least"),
        ({"vary": {"views": {}}}, "a variant at least"),
        ({"compare": {}}, "names one axis"),
        ({"compare": {"view": "baseline"}}, "vary has no 'view' but views. Did you mean 'views'"),
        ({"compare": {"views": "baselin"}}, "Did you mean 'baseline'"),
        ({"vary": {"views": {"baseline": {"seed": 3}}}}, "sets seed: list it under seeds"),
        ({"vary": {"views": {"baseline": {"baseline": True}}}}, "a variant is the baseline here"),
        ({"vary": {"views": {"baseline": {"trainin": {}}}}}, "with baseline does not.*\n.*Did you mean 'training'"),
        ({"vary": {"views": {"a b": {}, "baseline": {}, "a/b": {}}}}, "'a b' and 'a/b' would share the folder a-b"),
        ({"vary": {"views": {"A": {}, "a": {}}}, "compare": {"views": "a"}}, "would share the folder a"),
        ({"vary": {"views": {"baseline": {}, "../..": {}}}}, "has neither letter nor digit"),
        ({"vary": {"views": {"baseline": {}, "a" * 99: {}}}}, "is longer than 80 bytes"),
        ({"vary": {"views": {"baseline": {}, "ж" * 50: {}}}}, "is longer than 80 bytes"),
        ({"vary": {"views": ["baseline"]}}, "vary needs axes with named variants"),
        ({"vary": {"views": {"baseline": {}, "a b": {}, "a  b": {}}}}, r"vary\.views: 'a b' is given twice"),
        ({"vary": {"views": {"baseline": {}, "0.5": {}, 0.5: {}}}}, r"vary\.views: '0\.5' is given twice"),
        ({"vary": {"views": {True: {}}}}, r"vary\.views: YAML reads this name as True\. Put it in quotes"),
        ({"vary": {"views": {"baseline": 3}}}, r"vary\.views\.baseline: .*dictionary"),
        ({"compare": None}, "compare names one axis and one variant"),
        ({"seeds": 3}, r"seeds is to be a list, as in \[0, 1, 2\]; given: 3"),
        ({"compared": {}}, "does not describe a study:\n.*compared: unknown key. Did you mean 'compare'"),
        ({"experiment": "bse.yaml"}, "There is no experiment file .*Did you mean .*base.yaml"),
    ],
)
def test_studies_that_cannot_be(changes: dict[str, Any], message: str, file: Path) -> None:
    with pytest.raises(UserError, match=message):
        grid(file, **changes)


def test_what_is_shared_depends_on_what_the_views_depend_on(file: Path) -> None:
    """Levels share an analysis, methods and seeds share views too, whichever images are held out."""
    run = grid(file).runs[1]
    shared, experiment = Shared(Path()), run.experiment

    def place(**changes: Any) -> tuple[Path, Path]:
        making = making_of(replace(experiment, **changes), 0)
        assert making is not None
        return shared.analysis(making).root, shared.views(making).root

    analysis, views = place()
    assert place(seed=5, quality=None, method=SimSiam(projection=9)) == (analysis, views)
    assert place(foreground=replace(experiment.foreground, workers=3)) == (analysis, views)
    assert place(noise=Random())[0] == analysis
    assert place(noise=Random())[1] != views
    assert place(generate=replace(experiment.generate, draws=2))[0] == analysis
    assert place(generate=replace(experiment.generate, draws=2))[1] != views
    assert place(foreground=replace(experiment.foreground, share=0.3))[0] != analysis
    assert place(test=None, seed=5) == place(test=None)
    assert place(test=None) != (analysis, views)
    assert place(validation=0.5)[0] != analysis
    assert making_of(grid(file).runs[0].experiment, 0) is None


def test_a_link_is_made_once_and_nothing_is_overwritten(tmp_path: Path) -> None:
    link(tmp_path / "a" / "views", tmp_path / "shared" / "views")
    link(tmp_path / "a" / "views", tmp_path / "shared" / "views")
    assert str((tmp_path / "a" / "views").readlink()) == "../shared/views"
    (tmp_path / "b" / "views").mkdir(parents=True)
    for place in (tmp_path / "a", tmp_path / "b"):
        with pytest.raises(UserError, match="delete the run's folder"):
            link(place / "views", tmp_path / "other")


def test_the_study_of_the_documentation_is_one(tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    text = (root / "docs" / "study.md").read_text()
    shutil.copy(root / "experiments" / "quickstart.yaml", tmp_path)
    (tmp_path / "study.yaml").write_text(text.partition("```yaml\n")[2].partition("```")[0])
    found = load_study(tmp_path / "study.yaml")
    assert f"It has {len(found.runs)} runs" in text
    assert {run.variants[1] for run in found.runs} == {"baseline", "random level", "adaptive + quality"}
