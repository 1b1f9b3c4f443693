"""The YAML boundary: what is refused and how it is said; every shipped experiment loads."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from conftest import Painted
from genview.errors import UserError
from genview.experiment import (
    Examination,
    Experiment,
    FitExperiment,
    LoraExperiment,
    Stages,
    load,
    load_study,
    parse,
    to_yaml,
)
from genview.experiment.cost import own_negatives, views_too_late, warmup_too_long
from genview.experiment.load import overridden
from genview.generators import EmbeddedSettings, GeneratorSettings, UnclipSettings
from genview.methods import MoCoV2, SimSiam
from genview.noise import Adaptive, Constant
from genview.pairs import Pairs, SameClassViews
from genview.quality import ExactWeigher
from genview.store import RunFolder
from genview.training import TrainSettings, pretrain
from test_quality import HalvesAsTokens

ROOT = Path(__file__).parent.parent
SHIPPED = sorted((ROOT / "experiments").glob("*.yaml"))
LEAST = {"images": {"kind": "digits"}}


def made(**changes: object) -> Experiment:
    return parse(Experiment, {**LEAST, **changes}, "test.yaml")


@pytest.mark.parametrize("file", SHIPPED, ids=lambda p: p.stem)
def test_every_shipped_experiment_loads_and_says_how_it_was_run(file: Path) -> None:
    kinds = {"fit": FitExperiment, "lora": LoraExperiment, "evaluate": Examination}
    kind = kinds.get(file.stem.partition("-")[0], Experiment)
    study = file.stem.startswith("study-")
    if study:
        load_study(file)
    else:
        load(kind, file)
    first = file.read_text().splitlines()[0]
    verbs: dict[type, str] = {Experiment: "run", Examination: "evaluate"}
    verb = "study" if study else verbs.get(kind, "fit-generator")
    assert re.match(f"# (torchrun --nproc-per-node 8 -m )?genview {verb} experiments/{file.name} ", first)
    assert "--out" in first


def test_defaults_are_those_of_the_paper() -> None:
    experiment = made(generator={"kind": "unclip"}, quality={})
    assert experiment.noise == Adaptive(levels=(0, 100, 200, 300, 400))
    assert experiment.generator is not None
    assert (experiment.generator.guidance, experiment.generator.steps) == (10.0, 20)
    assert experiment.quality is not None
    assert (experiment.quality.gamma, experiment.foreground.share, experiment.pairs.views) == (1.0, 0.4, 1.0)


def test_a_folder_gets_the_recipe_of_the_model_inside_the_package() -> None:
    given = load(FitExperiment, ROOT / "experiments" / "fit-natural.yaml")
    plain = parse(FitExperiment, LEAST, "test.yaml")
    for name in ("encoder", "method", "pairs", "fit", "seed"):
        assert getattr(given, name) == getattr(plain, name), name
    assert (given.training.batch, given.training.optimizer) == (plain.training.batch, plain.training.optimizer)


def test_a_preset_stands_for_options_and_those_beside_it_win() -> None:
    fast = made(generator={"kind": "unclip", "preset": "fast", "steps": 6}).generator
    assert fast == UnclipSettings(steps=6, solver="dpm", interval=(0.1, 0.6), size=512, compile=True)
    assert made(generator={"kind": "unclip", "preset": "paper"}).generator == UnclipSettings()
    assert made(generator={"kind": "embedded", "preset": "draft"}).generator == EmbeddedSettings(steps=1)
    assert (
        "preset" not in yaml.safe_load(to_yaml(made(generator={"kind": "embedded", "preset": "fast"})))["generator"]
    )
    with pytest.raises(UserError, match=r"no preset 'fats' but paper, .*Did you mean 'fast'"):
        made(generator={"kind": "unclip", "preset": "fats"})
    with pytest.raises(UserError, match=r"generator: .*'cubist'"):
        made(generator={"kind": "cubist", "preset": "fast"})


@pytest.mark.parametrize("kind", get_args(GeneratorSettings), ids=lambda kind: kind.kind)
def test_every_generator_has_the_same_presets_and_they_are_options_of_its_own(kind: Any) -> None:
    assert list(kind.presets) == ["paper", "balanced", "fast", "draft"]
    for options in kind.presets.values():
        kind(**options)


def test_null_generator_and_quality_are_the_baselines() -> None:
    assert made(generator=None, quality=None) == made()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mehtod": {"kind": "simsiam"}}, "mehtod: unknown key. Did you mean 'method'"),
        ({"training": {"lenght": "3 epochs"}}, "training.lenght: unknown key. Did you mean 'length'"),
        (
            {"method": {"kind": "moco_v2", "temprature": 0.1}},
            "temprature: unknown key. Did you mean 'temperature'",
        ),
        ({"method": {"kind": "simclr9"}}, "method: .*simclr9.*moco_v2"),
        ({"method": {"queue": 8}}, "method: say which kind"),
        ({"images": {"kind": "folder"}}, "images.folder.root: is needed"),
        ({"seed": "many"}, "seed: .*integer.*many"),
        ({"pairs": {"size": "big", "views": "all"}}, "(?s)pairs.size.*pairs.views"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_path(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        made(**changes)


def test_overrides_are_read_as_yaml() -> None:
    content = overridden(
        LEAST, ["seed=3", "generator={kind: embedded, steps: 4}", "noise.kind=constant", "noise.level=200"]
    )
    experiment = parse(Experiment, content, "test.yaml")
    assert experiment.seed == 3
    assert experiment.generator == EmbeddedSettings(steps=4)
    assert experiment.noise == Constant(level=200)
    assert LEAST == {"images": {"kind": "digits"}}, "the original is left alone"


@pytest.mark.parametrize(("text", "message"), [("seed", "write path=value"), ("seed.a=3", "holds a single value")])
def test_overrides_that_cannot_be_applied(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        overridden({**LEAST, "seed": 0}, [text])


def test_what_is_dumped_loads_to_the_same() -> None:
    experiment = made(
        method={"kind": "simsiam", "projection": 64}, generator={"kind": "embedded"}, quality={"gamma": 2.0}
    )
    assert isinstance(experiment.method, SimSiam)
    assert parse(Experiment, yaml.safe_load(to_yaml(experiment)), "dumped") == experiment


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text("images: {kind: digits}")
    with pytest.raises(UserError, match=r"tiny\.yaml"):
        load(Experiment, tmp_path / "tinny.yaml")
    for text, message in (
        ("a: [", "no YAML file"),
        ("just words", "holds no experiment"),
        ("pairs: {size: 32}\nseed: 1\npairs: {views: 0.5}", "'pairs' is given twice in .*line 3"),
        ("pairs: {size: 32, views: 1, size: 64}", "'size' is given twice"),
    ):
        (tmp_path / "bad.yaml").write_text(text)
        with pytest.raises(UserError, match=message):
            load(Experiment, tmp_path / "bad.yaml")


@pytest.mark.parametrize("work", ["analysis", "quality", "views", "checkpoints", "backbone.safetensors"])
def test_a_folder_is_taken_only_once_there_is_work_in_it(work: str, tmp_path: Path) -> None:
    """A misspelt folder of images must not bind the run folder; work of other settings must."""
    Stages.open(made(seed=1), tmp_path)
    Stages.open(made(seed=2), tmp_path)
    (tmp_path / work).mkdir()
    with pytest.raises(UserError, match="seed: there 2, now 3"):
        Stages.open(made(seed=3), tmp_path)
    Stages.open(made(seed=2, training={"workers": 7}), tmp_path)


@pytest.mark.parametrize("file", [file for file in SHIPPED if "-" not in file.stem], ids=lambda f: f.stem)
def test_every_shipped_experiment_takes_two_steps(file: Path, tmp_path: Path) -> None:
    """With its own method, recipe, optimizer, weights; smaller images and batches, few blocks of its backbone."""
    given = load(Experiment, file)
    side = 32
    crops = replace(given.pairs.crops, size=16) if given.pairs.crops else None
    pairs = Pairs(Painted(8), replace(given.pairs, size=side, crops=crops), given.seed)
    backbone = given.training.backbone
    few = {"img_size": side, "depth": 2} if "vit" in backbone.name else {"layers": [1, 1, 1, 1]}
    backbone = replace(backbone, args={**backbone.args, **few})
    short = {
        "length": "2 steps",
        "warmup": "0 steps",
        "batch": 4,
        "workers": 0,
        "device": "cpu",
        "precision": "float32",
    }
    training = replace(given.training, backbone=backbone, measure_every="1 steps", **short)  # type: ignore[arg-type]
    weigh = None if given.quality is None else ExactWeigher(HalvesAsTokens(), torch.ones(3), given.quality)
    run = RunFolder(tmp_path)
    pretrain(given.method, pairs, training, run, weigh=weigh, probe=None, tell=lambda *_: None)
    losses = [m.value for m in run.measures() if m.name == "train/loss"]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


@pytest.mark.parametrize("file", ["study-cifar10.yaml", "study-imagenette64.yaml"])
def test_shipped_studies_have_the_rows_of_the_ablation(file: str) -> None:
    grid = load_study(ROOT / "experiments" / file)
    assert len(grid.runs) == 36
    wanted = [(False, False), (False, False), (True, False), (True, False), (True, False), (True, True)]
    for method in ("simsiam", "moco_v2"):
        rows = [run.experiment for run in grid.runs if run.variants[0] == method and run.experiment.seed == 0]
        assert [(row.generator is not None, row.quality is not None) for row in rows] == wanted
        assert [row.views is not None for row in rows] == [False, True, False, False, False, False]
        assert [row.noise.kind for row in rows[2:]] == ["constant", "random", "adaptive", "adaptive"]
        assert {row.method.kind for row in rows} == {method}
        assert len({to_yaml(row.training) for row in rows}) == 1, "the same budget"


@pytest.mark.parametrize(
    ("alone", "study", "method"),
    [("cifar10_simsiam", "study-cifar10", "simsiam"), ("imagenette64_moco_v2", "study-imagenette64", "moco_v2")],
)
def test_an_experiment_that_quotes_a_study_is_a_run_of_it(alone: str, study: str, method: str) -> None:
    quoted = load(Experiment, ROOT / "experiments" / f"{alone}.yaml")
    runs = load_study(ROOT / "experiments" / f"{study}.yaml").runs
    run = next(r for r in runs if r.variants == (method, "adaptive level + quality") and r.experiment.seed == 0)
    assert quoted == replace(run.experiment, baseline=True)


def test_the_study_of_budgets_varies_length_and_second_view_alone() -> None:
    runs = shipped_runs("study-budget")
    assert len(runs) == 8
    short, first = runs["40 epochs", "originals", 0], runs["160 epochs", "originals", 0]
    assert short == replace(first, training=replace(first.training, length="40 epochs"))
    for (_, name, _), other in runs.items():
        assert (other.generator is None, other.views) == (name != "generated", SAME.get(name))
        assert other.pairs == replace(first.pairs, views=0.3 if "30" in name else 1.0)
        assert replace(other.training, length=first.training.length) == first.training


def test_the_study_of_all_images_is_that_of_some_but_for_more_images() -> None:
    some, every = (shipped_runs(name) for name in ("study-cifar10", "study-cifar10-all"))
    assert len(every) == 30
    for names, run in every.items():
        fewer, training = some[names], replace(run.training, length="40 epochs", probe_every="20 epochs")
        assert replace(run, training=training, images=fewer.images) == fewer


def test_the_study_of_levels_has_runs_of_the_one_that_it_explains() -> None:
    levels, explained = shipped_runs("study-levels"), shipped_runs("study-imagenette64")
    for name, theirs in (("baseline", "baseline"), ("level 200", "constant level")):
        assert levels[name, 0] == explained["simsiam", theirs, 0]
    for (name, seed), run in levels.items():
        assert replace(run, noise=levels["level 200", seed].noise) == levels["level 200", seed] or name == "baseline"


def test_the_study_of_a_start_varies_the_second_view_alone() -> None:
    runs = shipped_runs("study-start")
    for (name, seed), run in runs.items():
        first = runs["originals", seed]
        assert run.training == first.training
        made = name.startswith(("generated", "level"))
        assert (run.generator is not None, run.views) == (made, SAME.get(name))
        assert run.pairs == replace(first.pairs, views=0.3 if "30" in name else 1.0)


def test_the_study_of_late_views_varies_the_second_view_and_its_beginning() -> None:
    runs = shipped_runs("study-late")
    for (name, seed), run in runs.items():
        first = runs["originals", seed]
        assert run.training == first.training
        assert (run.generator is not None, run.views) == (name.startswith("generated"), SAME.get(name[:10]))
        assert run.pairs == replace(first.pairs, views=0.3, views_from=40 if name.endswith("late") else 0)


def test_the_study_of_what_views_keep_differs_in_that_from_the_study_of_a_start() -> None:
    runs, before = shipped_runs("study-kept"), shipped_runs("study-start")
    options = {"originals": None, "always kept": SameClassViews(), "kept 75 %": SameClassViews(kept=0.75)}
    options |= {"kept 50 %": SameClassViews(kept=0.5), "4 draws": SameClassViews(draws=4)}
    options |= {"1 draw": SameClassViews(draws=1)}
    assert {name: run.views for (name, _), run in runs.items()} == options
    for (_, seed), run in runs.items():
        other = before["same class, 30 %", seed]
        assert (run.generator, run.pairs, run.training) == (other.generator, other.pairs, other.training)


def shipped_runs(name: str) -> dict[Any, Experiment]:
    """Experiments of a shipped study by its variants and seed."""
    runs = load_study(ROOT / "experiments" / f"{name}.yaml").runs
    return {(*run.variants, run.experiment.seed): run.experiment for run in runs}


SAME = {"same class": SameClassViews(), "same class, 30 %": SameClassViews()}


def test_a_queue_that_holds_keys_of_the_image_itself_is_told() -> None:
    (line,) = own_negatives(MoCoV2(queue=1024), 1000, 64)
    assert "1.0 are of the image itself" in line
    assert line.endswith("method.queue: 200")
    assert not list(own_negatives(MoCoV2(queue=200), 1000, 64))
    assert not list(own_negatives(MoCoV2(queue=64), 100, 64)), "a batch must fit into it"
    assert not list(own_negatives(SimSiam(), 10, 64))


def test_views_that_would_begin_after_the_training_are_told() -> None:
    short = {"training": {"length": "3 epochs", "batch": 64}, "generator": {"kind": "embedded"}}
    (line,) = views_too_late(made(**short, pairs={"views_from": 3}), 1000)
    assert "has 3 epochs and no epoch 3" in line
    assert not list(views_too_late(made(**short, pairs={"views_from": 2}), 1000))
    assert not list(views_too_late(made(**short | {"generator": None}, pairs={"views_from": 3}), 1000))


def test_a_warmup_that_the_training_does_not_outlast_is_told() -> None:
    training = TrainSettings(length="640 images", warmup="10 steps", batch=64)
    (line,) = warmup_too_long(training, 1000)
    assert line.startswith("training.warmup: it takes 10 steps, and the training 640 images,")
    assert not list(warmup_too_long(replace(training, warmup="9 steps"), 1000))
    assert not list(warmup_too_long(replace(training, warmup="0 epochs"), 1000))
