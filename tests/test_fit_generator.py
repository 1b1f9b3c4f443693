"""The verb fit-generator as a user meets it: any folder, a start, an encoder of others, costs, page, kind errors."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from conftest import Said
from genview.encoders import BackboneSettings, load_frozen
from genview.encoders.backbone import create_net
from genview.errors import UserError
from genview.experiment import FitExperiment, load, planned
from genview.experiment.fit import Fit
from genview.generators import EmbeddedSettings
from genview.generators.token_diffusion import load_layout
from genview.report import write_fit_page
from genview.report.fitting import sheet
from genview.store import RunFolder
from scans import TRUNK, scans


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scans(tmp_path_factory.mktemp("fit-generator"))


@pytest.fixture
def verb(folder: Path, said: Callable[..., Said]) -> Callable[..., Said]:
    """`genview fit-generator fit.yaml --out OUT`, and more words."""
    return lambda out, *more: said("fit-generator", folder / "fit.yaml", "--out", out, *more)


@pytest.fixture(scope="module")
def finished(folder: Path) -> Path:
    said: list[str] = []
    from genview.experiment import fit_generator

    out = folder / "out"
    fit_generator(load(FitExperiment, folder / "fit.yaml"), out, lambda *_: None, said.append)
    (folder / "said").write_text("\n".join(said))
    return out


def test_any_folder_of_images_becomes_a_generator(finished: Path, folder: Path) -> None:
    for name in ("model_index.json", "encoder", "unet", "samples", "report.html", "experiment.yaml"):
        assert (finished / name).exists(), name
    generator = EmbeddedSettings(weights=str(finished), size=32).load("cpu")
    condition = generator.encoder.encode(torch.rand(2, 3, 32, 32)).embedding
    assert generator.sample(condition, torch.tensor([0, 400]), torch.ones(2), [1, 2]).shape == (2, 3, 32, 32)
    assert load_frozen(str(finished)).size == 32
    rows = [json.loads(line) for line in (finished / "quarantine.jsonl").read_text().splitlines()]
    assert len(rows) == len({row["key"] for row in rows}), "each once"
    assert {row["key"] for row in rows} <= {"10.png", "11.png", "12.png"}
    assert rows
    assert all(row["reason"] for row in rows)
    assert load(FitExperiment, finished / "experiment.yaml") == load(FitExperiment, folder / "fit.yaml")


def test_the_cost_is_told_before(finished: Path, folder: Path) -> None:
    assert finished.exists()
    said = (folder / "said").read_text()
    for pattern in (
        r"images: 36 to train on, 4 held out",
        r"encoder: [\d.]+ \w+ for 4 steps of 8",
        r"generator: [\d.]+ \w+ for 6 steps of 8 windows \(\d+ a second; devices: 1\)",
        r"memory: .*GB at most so far; disk: [\d.]+ kB for the result",
    ):
        assert re.search(pattern, said), pattern


def test_the_cost_of_the_result_is_its_size(finished: Path, folder: Path) -> None:
    """In half precision, plus headers; and the state to continue from in float32, with two moments and an average."""
    said = (folder / "said").read_text()
    found = re.search(r"disk: ([\d.]+) kB for the result, ([\d.]+) (kB|MB)", said)
    assert found
    result = sum(
        path.stat().st_size
        for path in [*finished.glob("encoder/*.safetensors"), *finished.glob("unet/*.safetensors")]
    )
    assert float(found[1]) * 1e3 == pytest.approx(result, rel=0.2)
    state = (finished / "training.pt").stat().st_size
    assert float(found[2]) * {"kB": 1e3, "MB": 1e6}[found[3]] == pytest.approx(state, rel=0.3)


def test_doing_it_again_says_that_it_is_finished_and_changes_nothing(
    finished: Path, verb: Callable[..., Said]
) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    lines = (finished / "measures.jsonl").read_text()
    done = verb(finished, "--set", "fit.workers=1", "--set", "fit.save_every=2")
    assert done.returncode == 0, done.stderr
    assert "finished already" in done.stderr
    assert "images:" not in done.stderr, "no cost is told of what is done"
    assert {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")} == before
    assert (finished / "measures.jsonl").read_text() == lines


def test_stopped_in_either_training_it_goes_on_to_the_same_end(finished: Path, folder: Path, tmp_path: Path) -> None:
    experiment = load(FitExperiment, folder / "fit.yaml")

    def stopped(verb: str, at: int) -> None:
        def tell(what: str, done: int, _total: int, _note: str) -> None:
            if (what, done) == (verb, at):
                raise KeyboardInterrupt

        Fit.open(experiment, tmp_path, tell).train()

    for verb, at in (("pretrain", 3), ("fit-generator", 4)):
        with pytest.raises(KeyboardInterrupt):
            stopped(verb, at)
        assert Fit.open(experiment, tmp_path, lambda *_: None).begun
    stopped("nothing", 0)
    for name in ("unet/diffusion_pytorch_model.safetensors", "encoder/model.safetensors"):
        assert (finished / name).read_bytes() == (tmp_path / name).read_bytes()


def test_a_student_of_a_finished_generator(finished: Path, verb: Callable[..., Said]) -> None:
    distil = "distil={student_steps: 2, teacher_steps: 2, samples: 16, batch: 8}"
    done = verb(finished, "--set", distil)
    assert done.returncode == 0, done.stderr
    assert f"generator.weights={finished / 'student'}" in "".join(done.stderr.split("\n"))
    student = EmbeddedSettings(weights=str(finished / "student"), size=32).load("cpu")
    condition = student.encoder.encode(torch.rand(1, 3, 32, 32)).embedding
    assert student.sample(condition, torch.tensor([200]), torch.ones(1), [1]).shape == (1, 3, 32, 32)
    assert "finished already" in verb(finished, "--set", distil).stderr
    done = verb(finished, "--set", distil.replace("2,", "3,", 1))
    assert done.returncode == 2
    assert "student_steps: there 2, now 3" in " ".join(done.stderr.split())


def test_ctrl_c_says_how_to_go_on(tmp_path: Path, verb: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    def struck(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("genview.experiment.fit_generator", struck)
    done = verb(tmp_path / "out")
    assert done.returncode == 130
    assert "Run the same command again to continue" in done.stderr


def test_the_folder_of_another_experiment_is_refused(finished: Path, verb: Callable[..., Said]) -> None:
    done = verb(finished, "--set", "fit.rate=0.1")
    assert done.returncode == 2
    assert "fit.rate: there 0.0007, now 0.1" in " ".join(done.stderr.split())


def test_check_and_report_understand_it(
    finished: Path, folder: Path, tmp_path: Path, said: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = said("check", folder / "fit.yaml")
    assert done.returncode == 0, done.stderr
    assert "widths:" in done.stdout
    assert "generator: " in done.stdout
    assert not list(tmp_path.iterdir()), "nothing is left behind"
    (finished / "report.html").unlink()
    assert said("report", finished).returncode == 0
    assert "Views of held-out images" in (finished / "report.html").read_text()
    done = said("watch", "--out", finished, "--once")
    assert "fit/loss" in done.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--set", "images.root=ROOT/ten"],
            "10 images, and a generator cannot be learnt from fewer than 32",
        ),
        (["--set", "images.root=ROOT/nothing"], "There is no image in"),
        (["--set", "images.root=ROOT/scams"], "Did you mean 'scans'"),
        (["--set", "images.root=ROOT/broken"], "not an image that Pillow knows"),
        (["--set", "fit.batch=64"], "36 images to train on, fewer than one batch of 64"),
        (["--set", "training.batch=64"], "fewer than one batch of 64"),
        (["--set", "training.devices=2"], "say fit.device and fit.devices"),
        (["--set", "training.backbone={name: resnet18}"], "remove training.backbone"),
        (["--set", "fit.start_from=natrual"], "holds no generator"),
        (["--set", "distil={student_steps: 9}"], "a student takes 1 to 8 steps"),
        (["--set", "distil={size: 64}"], "Say fit.size, for the student too: not distil.size"),
        (["--set", "fit.start_from=natural"], "fit.network.widths: there [48, 96, 192], now [16, 32]"),
        (["--set", "encoder_weights=resnet19"], "Did you mean 'resnet"),
        (["--set", "encoder_weights=trunk.pth"], "could run code"),
        (["--set", "encoder_weights=absent.safetensors"], "no file of weights"),
    ],
)
def test_faults_are_one_paragraph_before_any_training(
    words: list[str], message: str, folder: Path, tmp_path: Path, verb: Callable[..., Said]
) -> None:
    for name, data in (("ten", None), ("nothing", None), ("broken", b"no image")):
        (folder / name).mkdir(exist_ok=True)
        for i in range({"ten": 10, "nothing": 0, "broken": 40}[name]):
            image = folder / "scans" / f"{20 + i % 10}.png"
            (folder / name / f"{i:02d}.png").write_bytes(data or image.read_bytes())
    done = verb(tmp_path / "out", *[word.replace("ROOT", str(folder)) for word in words])
    assert done.returncode == 2, done.stderr
    assert message in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "training.pt").exists()
    taken = (tmp_path / "out" / "settings.json").exists()
    assert taken == ("broken" in words[1]), "a folder is taken by what the look at costs finds no fault with"


def test_a_start_gives_encoder_code_and_weights(finished: Path, folder: Path, tmp_path: Path) -> None:
    """With a rate of nothing, what comes out is what went in, and no encoder is trained."""
    plain = load(FitExperiment, folder / "fit.yaml")
    settings = replace(plain.fit, start_from=str(finished), rate=0.0, samples=8, held_out=0)
    Fit.open(replace(plain, fit=settings), tmp_path / "same", lambda *_: None).train()
    for name in ("unet/diffusion_pytorch_model.safetensors", "encoder/model.safetensors"):
        before, after = (safetensors.torch.load_file(place / name) for place in (finished, tmp_path / "same"))
        assert all(torch.equal(after[key], value) for key, value in before.items())
    assert not (tmp_path / "same" / "encoder-run").exists()


def test_a_start_with_fewer_channels_is_widened(finished: Path, folder: Path, tmp_path: Path) -> None:
    """With a rate of nothing the network is the old one, blind to the new channels; the sketch has them already."""
    plain = load(FitExperiment, folder / "fit.yaml")
    known = plain.encoder.detail_channels
    fit = replace(plain.fit, start_from=str(finished), rate=0.0, samples=8, held_out=0)
    wider = replace(plain, fit=fit, encoder=replace(plain.encoder, detail_channels=known + 2))
    Fit.open(wider, tmp_path / "wider", lambda *_: None).train()
    (old, was, _, _), (new, now, _, _) = (load_layout(place, 32) for place in (finished, tmp_path / "wider"))
    mine, theirs = now.unet.conv_in.weight, was.unet.conv_in.weight
    at = theirs.shape[1] - plain.encoder.gist_channels - 1
    assert torch.equal(mine[:, at : at + 2], torch.zeros_like(mine[:, :2]))
    assert torch.equal(torch.cat([mine[:, :at], mine[:, at + 2 :]], dim=1), theirs)
    assert torch.equal(new.model.detail.weight[:known], old.model.detail.weight)
    assert bool((new.model.detail.weight[known:] != 0).any(dim=1).all())
    assert new.model.residual < old.model.residual
    narrower = replace(plain, fit=fit, encoder=replace(plain.encoder, detail_channels=known - 1))
    with pytest.raises(UserError, match=f"encoder.detail_channels: there {known}, now {known - 1}"):
        Fit.open(narrower, tmp_path / "narrower", lambda *_: None).train()


def test_an_encoder_of_others_with_the_network_of_a_start(finished: Path, folder: Path, tmp_path: Path) -> None:
    """The trunk is the file's, the code is fitted to it, and the network begins where the start's ended."""
    torch.manual_seed(5)
    net = create_net(BackboneSettings(**TRUNK))
    path = tmp_path / "trunk.safetensors"
    safetensors.torch.save_file({**net.state_dict(), "fc.weight": torch.zeros(10, 16)}, path)
    plain = load(FitExperiment, folder / "fit.yaml", [f"encoder_weights={path}", f"fit.start_from={finished}"])
    assert "Left out: fc.weight" in list(planned(plain, tmp_path / "nowhere"))
    settings = replace(plain.fit, rate=0.0, samples=8, held_out=0)
    Fit.open(replace(plain, fit=settings), tmp_path / "out", lambda *_: None).train()
    old, new = (load_layout(place, 32) for place in (finished, tmp_path / "out"))
    for name, value in net.state_dict().items():
        torch.testing.assert_close(new[0].model.trunk.state_dict()[name], value, rtol=1e-3, atol=1e-3)
    assert not torch.equal(new[0].model.sketch.weight, old[0].model.sketch.weight)
    for mine, theirs in zip(new[1].unet.parameters(), old[1].unet.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_page_of_a_training(finished: Path, tmp_path: Path) -> None:
    page = (finished / "report.html").read_text()
    for words in ("The generator is finished", "Step 6", "Step 4", "RMSE between two draws", "level 400", "widths"):
        assert words in page
    assert page.count('<img class="sheet small"') == 2
    assert page.count("<svg") == 6
    empty = write_fit_page(RunFolder(tmp_path)).read_text()
    assert "has not begun" in empty
    assert "Nothing here yet" in empty


def test_sheets_lie_row_by_row() -> None:
    images = np.arange(2 * 3, dtype=np.uint8).reshape(2, 3, 1, 1, 1) * np.ones((1, 1, 4, 4, 3), np.uint8)
    whole = sheet(images)
    assert whole.shape == (10, 16, 3)
    assert whole[[0, 0, 0, 6, 6, 6], [0, 6, 12, 0, 6, 12], 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert (whole[4:6] == 255).all()
