"""The generation benchmark: every way makes every view, the work is counted by hand, and the last line is JSON."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from genview.generators import UnclipSettings

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))
import generation
from generation import LEVELS, Trial, by_loop, by_ours, by_pipeline, flops_of, main, measured, photographs
from unclip_shapes import TENTH, random_pipeline

SMALL = replace(TENTH, size=32, unet=(16, 16, 16, 16), heads=(2, 2, 2, 2), text=(16, 1, 2), vision=(16, 1, 2))


@pytest.fixture(scope="module")
def trial(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    torch.manual_seed(0)
    folder = random_pipeline(SMALL, tmp_path_factory.mktemp("small") / "unclip")
    settings = UnclipSettings(weights=str(folder), steps=1, size=32, save_size=24, precision="float32")
    return Trial(photographs(6, side=64), settings, "cpu", peak=1.0)


# Inside the pipeline, a tensor becomes an array in a way that NumPy 2 frowns upon.
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_every_way_makes_every_view(trial: Trial) -> None:
    from diffusers import StableUnCLIPImg2ImgPipeline

    pipeline: Any = StableUnCLIPImg2ImgPipeline.from_pretrained(trial.settings.weights)
    pipeline.set_progress_bar_config(disable=True)
    generator = trial.settings.load("cpu")
    for made in (by_loop(pipeline, trial), by_pipeline(pipeline, trial, 4), by_ours(generator, trial, 4)):
        assert [Image.open(io.BytesIO(view)).size for view in made] == [(24, 24)] * 6
        assert len(set(made)) == 6
    assert trial.levels == [*LEVELS, 0]


def test_the_work_is_that_of_one_view_and_grows_with_the_steps(trial: Trial) -> None:
    two, four = (
        flops_of((own := replace(trial, settings=replace(trial.settings, steps=steps))).settings.load("cpu"), own)
        for steps in (2, 4)
    )
    net = trial.settings.load("cpu")._diffusion.unet.net
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, 4, 4, 4), 5, torch.zeros(1, 77, 16), class_labels=torch.zeros(1, 2 * SMALL.embedding))
    assert four - two == 2 * 2 * counter.get_total_flops(), "two steps more, guided"
    assert two > 6 * counter.get_total_flops(), "PNDM calls the network once more; encoder and decoder come on top"


def test_ways_take_turns_and_the_best_counts(trial: Trial, capsys: pytest.CaptureFixture[str]) -> None:
    order: list[str] = []

    def work(name: str) -> list[bytes]:
        order.append(name)
        return [b""] * 5

    ways = measured({name: lambda n=name: work(n) for name in "ab"}, trial, 10e12, turns=2)  # type: ignore[misc]
    assert order == list("ababab")
    assert [way.name for way in ways] == ["a", "b"]
    assert all(way.tflops == pytest.approx(10 * way.views_per_second) == way.share_of_peak for way in ways)
    assert "of peak" in capsys.readouterr().out


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")
def test_the_last_line_is_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(generation, "TENTH", SMALL)
    monkeypatch.setattr(generation, "matrix_peak", lambda *_: 0.1)
    assert main(["--quick", "--batch", "2", "--steps", "1", "--turns", "1"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    rates = found["images_per_second"]
    assert set(rates) == {"loop", "pipeline", "ours"}
    assert found["ratio_to_loop"] == pytest.approx(rates["ours"] / rates["loop"])
    assert found["cuda"] is None
