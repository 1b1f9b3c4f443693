"""The analyse stage: every image is measured, an interrupted stage goes on, and another experiment is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import references
from conftest import Painted
from genview.encoders import Encoded
from genview.errors import UserError
from genview.foreground import AnalyseSettings, Analysis, Looking, analyse
from genview.images.batches import square

# The stage


class Patches:
    """Tokens are the mean colours of a 4×4 grid of patches, the embedding is all of them."""

    name = "patches"
    size = 32

    def encode(self, images: Tensor) -> Encoded:
        tokens = F.avg_pool2d(images, 8).flatten(2).transpose(1, 2)
        return Encoded(tokens, tokens.flatten(1), (4, 4))

    def to(self, device: torch.device | str) -> Patches:  # noqa: ARG002
        return self


def silent(what: str, done: int, total: int, note: str) -> None:
    pass


def looking_at(source: Painted, **changes: Any) -> Looking:
    chosen = replace(AnalyseSettings(sample=16, part=7, batch=4), **changes)
    return Looking(source, Patches(), chosen, "cpu", silent, lambda *_: None)


def run(looking: Looking, folder: Path, *, seed: int = 3, images: str = "painted") -> Analysis:
    return analyse(looking, folder, seed=seed, identity={"images": images})


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def tokens_of(source: Painted, indices: range) -> Tensor:
    images = [torch.from_numpy(np.array(square(source.image(i), 32))).permute(2, 0, 1) / 255 for i in indices]
    return Patches().encode(torch.stack(images)).tokens


def test_every_image_is_measured(tmp_path: Path) -> None:
    source = Painted(24)
    analysis = run(looking_at(source, sample=100), tmp_path)
    rows, tokens = analysis.rows(), tokens_of(source, range(24))
    assert list(rows["key"]) == [source.key(i) for i in range(24)]
    assert rows["ratio"].dtype == np.float32
    assert rows["embedding"].dtype == np.float16
    np.testing.assert_allclose(rows["embedding"], tokens.flatten(1), atol=1e-3)
    wanted = references.foreground_ratio(
        tokens.numpy(), analysis.direction().vector.numpy(), analysis.summary["threshold"]
    )
    np.testing.assert_allclose(rows["ratio"], wanted, atol=1e-6)
    assert rows["ratio"].mean() == pytest.approx(0.4, abs=1.01 / tokens[..., 0].numel())
    above = analysis.direction().scores(tokens).numpy() - analysis.summary["threshold"]
    np.testing.assert_allclose(rows["map"], above, atol=1e-3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "direction.safetensors", "examples.npz", *(f"part-{n:05d}.parquet" for n in range(4)), "settings.json",
        "summary.json",
    ]  # fmt: skip


def test_the_disc_is_the_foreground(tmp_path: Path) -> None:
    source = Painted(60)
    analysis = run(looking_at(source, sample=60), tmp_path)
    tokens = tokens_of(source, range(60))
    # The disc is white and the ground has one colour, so the dimmest channel of a patch tells them apart.
    is_disc = tokens.amin(dim=2) > 0.5
    above = analysis.direction().scores(tokens) > analysis.summary["threshold"]
    assert float(above[is_disc].float().mean()) > float(above[~is_disc].float().mean()) + 0.5
    assert analysis.summary["sign_evidence"] * analysis.summary["sign"] > 3


def test_unreadable_images_have_no_row(tmp_path: Path) -> None:
    told: list[str] = []
    looking = replace(looking_at(Painted(24, broken=(0, 9, 23))), unreadable=lambda key, _: told.append(key))
    keys = list(run(looking, tmp_path).rows()["key"])
    assert keys == [looking.source.key(i) for i in range(24) if i not in (0, 9, 23)]
    assert set(told) == {looking.source.key(i) for i in (0, 9, 23)}


def test_a_part_without_readable_images_is_done_all_the_same(tmp_path: Path) -> None:
    source = Painted(24, broken=tuple(range(7, 14)))
    rows = run(looking_at(source), tmp_path).rows()
    assert list(rows["key"]) == [source.key(i) for i in range(24) if not 7 <= i < 14]
    assert rows["embedding"].shape == (17, 48)
    assert rows["embedding"].dtype == np.float16
    assert rows["map"].shape == (17, tokens_of(source, range(1)).shape[1])
    assert (tmp_path / "part-00001.parquet").exists()


def test_nothing_readable_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="None of the sampled images can be read"):
        run(looking_at(Painted(5, broken=(0, 1, 2, 3, 4))), tmp_path)


class Stop(Exception):  # noqa: N818
    pass


@pytest.mark.parametrize(
    ("stage", "batch"), [("direction", 2), ("threshold", 4), ("analyse", 1), ("analyse", 4), ("examples", 3)]
)
def test_an_interrupted_stage_ends_in_the_same_bytes(tmp_path: Path, stage: str, batch: int) -> None:
    source = Painted(24, broken=(5,))
    run(looking_at(source), tmp_path / "whole")
    told: list[str] = []

    def stop(what: str, done: int, total: int, note: str) -> None:  # noqa: ARG001
        told.append(what)
        if told.count(stage) == batch:
            raise Stop

    with pytest.raises(Stop):
        run(replace(looking_at(source), tell=stop), tmp_path / "cut")
    assert contents(tmp_path / "cut") != contents(tmp_path / "whole")
    seen: list[str] = []
    run(replace(looking_at(source), tell=lambda what, *_: seen.append(what)), tmp_path / "cut")
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert ("direction" in seen) == (stage in ("direction", "threshold"))  # what was done is not done again
    assert ("analyse" in seen) == (stage != "examples")


def test_a_finished_stage_encodes_nothing(tmp_path: Path) -> None:
    run(looking_at(Painted(8)), tmp_path)
    before = contents(tmp_path)

    def never(what: str, done: int, total: int, note: str) -> None:
        raise AssertionError((what, done, total, note))

    run(replace(looking_at(Painted(8)), tell=never), tmp_path)
    assert contents(tmp_path) == before


def test_another_experiment_is_refused_and_speed_is_not_one(tmp_path: Path) -> None:
    run(looking_at(Painted(8)), tmp_path)
    run(looking_at(Painted(8), batch=3), tmp_path)
    with pytest.raises(UserError, match=r"share: there 0\.4, now 0\.5"):
        run(looking_at(Painted(8), share=0.5), tmp_path)
    with pytest.raises(UserError, match="seed: there 3, now 4"):
        run(looking_at(Painted(8)), tmp_path, seed=4)
    with pytest.raises(UserError, match="images_found: there 8, now 9"):
        run(looking_at(Painted(9)), tmp_path)
    with pytest.raises(UserError, match='images: there "painted", now "others"'):
        run(looking_at(Painted(8)), tmp_path, images="others")


def test_the_sign_can_be_given(tmp_path: Path) -> None:
    up, down = (run(looking_at(Painted(24), sign=sign, sample=24), tmp_path / sign) for sign in ("+", "-"))
    assert torch.equal(up.direction().vector, -down.direction().vector)
    for analysis in (up, down):  # either way the stated share is foreground
        assert analysis.rows()["ratio"].mean() == pytest.approx(0.4, abs=0.01)
    auto = run(looking_at(Painted(24), sample=24), tmp_path / "auto")
    same = up if auto.summary["sign_by_centre"] > 0 else down
    assert torch.equal(auto.direction().vector, same.direction().vector)
    assert auto.rows()["ratio"].tolist() == same.rows()["ratio"].tolist()


@pytest.mark.parametrize(("sign", "wanted"), [("auto", 1.0), ("+", 1.0), ("-", -1.0)])
def test_a_given_direction_keeps_its_side_and_gets_its_own_threshold(
    tmp_path: Path, sign: str, wanted: float
) -> None:
    np.save(tmp_path / "v.npy", np.array([[-2.0], [0.0], [0.0]]))
    analysis = run(looking_at(Painted(24), direction=tmp_path / "v.npy", sign=sign, sample=24), tmp_path / "out")
    assert analysis.direction().vector.tolist() == [-2 * wanted, 0, 0]
    assert analysis.rows()["ratio"].mean() == pytest.approx(0.4, abs=0.01)


def test_a_direction_for_another_encoder_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.ones(7))
    with pytest.raises(UserError, match="has 7 values, but the encoder's tokens have 3"):
        run(looking_at(Painted(8), direction=tmp_path / "v.npy"), tmp_path / "out")


def test_examples_show_what_the_ratio_counts(tmp_path: Path) -> None:
    source = Painted(93)
    run(looking_at(source, part=50), tmp_path)
    with np.load(tmp_path / "examples.npz", allow_pickle=False) as found:
        keys, maps, ratio, images = (found[name] for name in ("keys", "maps", "ratio", "images"))
    assert list(keys) == [source.key(i) for i in range(0, 93, 4)]
    assert maps.shape == (24, 4, 4)
    np.testing.assert_allclose((maps > 0).mean(axis=(1, 2)), ratio, atol=1e-6)
    assert np.array_equal(images[1], np.array(square(source.image(4), 32)))


def test_a_folder_without_analysis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run `genview analyse` first"):
        _ = Analysis(tmp_path).summary
