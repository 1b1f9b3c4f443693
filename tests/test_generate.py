"""The generate stage: shards, seeds, resume; and the small generator's layout and training."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from conftest import Painted
from echo import Echo, analysed, files, key, make, planned, sidecars
from genview.encoders import BackboneSettings, TokenEncoder, TokenEncoderSettings
from genview.errors import UserError
from genview.generators import EmbeddedSettings, GenerateSettings, Maker, shard
from genview.generators.fit import FitSettings, fit
from genview.generators.generate import finish, in_this_process
from genview.generators.shard import encoded, run_shard
from genview.generators.token_diffusion import NetworkSettings
from genview.generators.windows import Windows
from genview.seeds import seed_of
from genview.store import read_table

TRUNK = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}, stem_stride=2)
ENCODER = TokenEncoderSettings(TRUNK, tokens_from=3, detail_from=(0, 2), detail_channels=4, gist_channels=6)
FIT = FitSettings(
    network=NetworkSettings(widths=(16, 32), layers=1),
    samples=48,
    batch=8,
    workers=0,
    save_every=2,
    measure_every=1,
    device="cpu",
)

PNG = GenerateSettings(format="png")


def test_every_image_gets_its_views_with_its_own_level_and_seed(tmp_path: Path) -> None:
    views = make(tmp_path / "views", replace(PNG, draws=2, shard=7))
    rows, ratios = sidecars(views.folder), read_table(sorted((tmp_path / "analysis").glob("*")))
    assert len(views) == 20
    assert sorted(zip(rows["key"], rows["draw"], strict=True)) == sorted(
        (key(i), d) for i in range(10) for d in (0, 1)
    )
    assert set(rows["status"]) == {"made"}
    for name, draw, level, seed in zip(rows["key"], rows["draw"], rows["level"], rows["seed"], strict=True):
        ratio = ratios["ratio"][list(ratios["key"]).index(name)]
        assert level == min(400, 100 * int(np.ceil(ratio / 0.2) - 1))
        assert seed == seed_of(7, name, int(draw), "view")


def test_all_draws_of_an_image_lie_in_one_shard_and_none_is_left_over(tmp_path: Path) -> None:
    make(tmp_path / "views", replace(PNG, draws=3, shard=7))
    rows = sidecars(tmp_path / "views")
    assert len(rows["key"]) == 30
    for i in range(10):
        assert len(set(rows["shard"][rows["key"] == key(i)])) == 1
    sizes = np.unique(rows["shard"], return_counts=True)[1]
    assert sizes.tolist() == [6, 6, 6, 6, 6]


def test_views_do_not_depend_on_shards_batches_or_order(tmp_path: Path) -> None:
    one = make(tmp_path / "one" / "views", replace(PNG, shard=10))
    analysed(tmp_path / "two" / "analysis", part=3, order=np.random.default_rng(1).permutation(10).tolist())
    two = make(tmp_path / "two" / "views", replace(PNG, shard=4), batch=3)
    for i in range(10):
        (a,), (b,) = one.find(key(i), 0), two.find(key(i), 0)
        assert np.array_equal(a.image.pixels(), b.image.pixels())
        assert a.level == b.level


def test_bytes_are_the_same_at_the_same_batch_size(tmp_path: Path) -> None:
    make(tmp_path / "one", GenerateSettings(shard=4))
    make(tmp_path / "two", GenerateSettings(shard=4))
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_a_resumed_run_makes_what_is_missing_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    settings = GenerateSettings(shard=4)
    make(tmp_path / "whole", settings)
    make(tmp_path / "cut", settings)
    for name in ("part-00001.parquet", "part-00002.parquet", next((tmp_path / "cut").glob("part-00002-*.tar")).name):
        (tmp_path / "cut" / name).unlink()
    (tmp_path / "cut" / ".part-00001.tar.1.part").write_bytes(b"half")
    echo = Echo()
    make(tmp_path / "cut", settings, echo)
    assert echo.calls == [4, 2], "one batch for each of the two shards without a table"
    assert files(tmp_path / "whole") == files(tmp_path / "cut")


def test_a_finished_run_is_left_alone(tmp_path: Path) -> None:
    make(tmp_path / "views", GenerateSettings(shard=4))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "views").rglob("*")}
    echo = Echo()
    make(tmp_path / "views", GenerateSettings(shard=4), echo)
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "views").rglob("*")} == before
    assert echo.calls == []


def test_progress_counts_views_and_starts_where_the_last_run_stopped(tmp_path: Path) -> None:
    plan = planned((analysed(tmp_path / "analysis") and tmp_path / "views"), GenerateSettings(shard=4))
    run_shard(plan, 1, Maker(Echo(), 4))
    told: list[tuple[str, int, int]] = []
    finish(plan, in_this_process(Maker(Echo(), 3)), lambda what, done, total, _: told.append((what, done, total)))
    assert [done for what, done, total in told if what == "generate" and total == 10] == [7, 8, 8, 10, 10]


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    make(tmp_path / "views", GenerateSettings(shard=4))
    with pytest.raises(UserError, match="shard: there 4, now 5"):
        make(tmp_path / "views", GenerateSettings(shard=5))


def test_memory_that_does_not_suffice_halves_the_batch_for_good(tmp_path: Path) -> None:
    plain = make(tmp_path / "plain", replace(PNG, shard=5))
    echo = Echo(room=3)
    small = make(tmp_path / "small", replace(PNG, shard=5), echo, batch=8)
    assert echo.calls == [2, 2, 1, 2, 2, 1]
    assert files(plain.folder) == files(small.folder)
    with pytest.raises(UserError, match="One view at once does not fit"):
        make(tmp_path / "none", PNG, Echo(room=0))


def test_black_views_are_made_again_in_float32_and_then_recorded(tmp_path: Path) -> None:
    bad = [seed_of(7, key(i), 0, "view") for i in (2, 5, 6)]
    echo = Echo(black=bad, exactly_black=bad[1:2])
    views = make(tmp_path / "views", replace(PNG, shard=4), echo)
    assert echo.exacts == 1, "once for a worker, not for a row"
    rows = sidecars(views.folder)
    failed = {str(name) for name in rows["key"][rows["status"] == "failed"]}
    assert failed == {key(5)}
    assert rows["length"][rows["status"] == "failed"].tolist() == [0]
    assert (views.made, views.failed, views.dropped, len(views)) == (9, 1, 0, 9)
    assert views.find(key(5), 0) == []
    plain = make(tmp_path / "plain", replace(PNG, shard=4))
    for i in (2, 6):
        mended, healthy = (table.find(key(i), 0)[0].image.pixels() for table in (views, plain))
        assert np.array_equal(mended, healthy)


def test_images_are_encoded_beside_the_sampling_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = set()

    def noted(view: Tensor, format_: str) -> bytes:
        threads.add(threading.get_ident())
        return encoded(view, format_)

    monkeypatch.setattr(shard, "encoded", noted)
    make(tmp_path / "views", PNG)
    assert threads
    assert threading.get_ident() not in threads


def trained(folder: Path, stop_at: int = 0, count: int = 16) -> list[float]:
    torch.manual_seed(0)
    encoder = TokenEncoder(ENCODER)
    losses: dict[int, float] = {}

    def tell(_what: str, done: int, _total: int, _note: str) -> None:
        if done == stop_at:
            raise KeyboardInterrupt

    fit(
        Painted(count),
        encoder,
        FIT,
        folder / "out",
        seed=0,
        tell=tell,
        measured=lambda name, value, step: losses.update({step: value} if name == "fit/loss" else {}),
    )
    return [losses[step] for step in sorted(losses)]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[float]]:
    folder = tmp_path_factory.mktemp("fitted")
    return folder / "out", trained(folder)


def test_fit_resumes_exactly(fitted: tuple[Path, list[float]], tmp_path: Path) -> None:
    whole, losses = fitted
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop_at=3)
    assert trained(tmp_path) == losses[2:], "continues after the save at step 2"
    for name in ("unet/diffusion_pytorch_model.safetensors", "encoder/model.safetensors"):
        assert (whole / name).read_bytes() == (tmp_path / "out" / name).read_bytes()


def test_a_damaged_state_of_fit_is_named(fitted: tuple[Path, list[float]], tmp_path: Path) -> None:
    state = (fitted[0] / "training.pt").read_bytes()
    (tmp_path / "out").mkdir()
    for damaged in (b"", b"no state", state[: len(state) // 2]):
        (tmp_path / "out" / "training.pt").write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be continued"):
            trained(tmp_path)


def test_fit_lets_the_trunk_alone(fitted: tuple[Path, list[float]]) -> None:
    torch.manual_seed(0)
    before = TokenEncoder(ENCODER).trunk.state_dict()
    after = safetensors.torch.load_file(fitted[0] / "encoder" / "model.safetensors")
    assert all(
        torch.equal(after[f"trunk.{name}"], value.half() if value.is_floating_point() else value)
        for name, value in before.items()
    )


def windows_of(source: Painted) -> Windows:
    return Windows(source, size=32, zoom=2.0, flip=0.5, seed=0)


def test_windows_are_whole_at_most_and_follow_seed_epoch_and_key() -> None:
    windows = windows_of(Painted(4, size=64))
    assert windows[0, 0].shape == (3, 32, 32)
    assert torch.equal(windows[0, 0], windows_of(Painted(4, size=64))[0, 0])
    assert not torch.equal(windows[0, 0], windows[1, 0])
    broken = windows_of(Painted(4, broken=(0, 1)))
    assert torch.equal(broken[0, 0].float().mean(), broken[0, 0].float().mean())
    with pytest.raises(UserError, match="None of the images"):
        windows_of(Painted(2, broken=(0, 1)))[0, 0]


def test_too_few_images_to_fit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="fewer than one batch of 8"):
        trained(tmp_path, count=5)


@pytest.mark.parametrize("size", [32, 48])
def test_the_small_generator_is_deterministic_per_row(fitted: tuple[Path, list[float]], size: int) -> None:
    generator = EmbeddedSettings(weights=str(fitted[0]), size=size, steps=3).load("cpu")
    images = torch.rand(3, 3, 40, 40)
    condition = generator.encoder.encode(images).embedding
    level, guidance, seeds = torch.tensor([0, 200, 400]), torch.ones(3), [1, 2, 3]
    together = generator.sample(condition, level, guidance, seeds)
    assert together.shape == (3, 3, size, size)
    assert together.dtype == torch.uint8
    for i in range(3):
        alone = generator.sample(condition[i : i + 1], level[i : i + 1], guidance[i : i + 1], seeds[i : i + 1])
        assert (alone[0].int() - together[i].int()).abs().max() <= 1
    guided = generator.sample(condition, level, torch.tensor([1.0, 1.0, 3.0]), seeds)
    assert (guided[:2].int() - together[:2].int()).abs().max() <= 1, "guidance belongs to its own row"
    assert not torch.equal(guided[2], together[2])


def test_wrong_weights_are_clear_errors(fitted: tuple[Path, list[float]], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no generator"):
        EmbeddedSettings(weights=str(tmp_path)).load("cpu")
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableUnCLIPImg2ImgPipeline"}')
    with pytest.raises(UserError, match="kind: unclip"):
        EmbeddedSettings(weights=str(tmp_path)).load("cpu")
    with pytest.raises(UserError, match="multiple of 8 pixels"):
        EmbeddedSettings(weights=str(fitted[0]), size=33).load("cpu")
