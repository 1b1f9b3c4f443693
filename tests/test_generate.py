"""The generate stage: shards, seeds, resume; and the small generator's layout and training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from conftest import Painted
from genview.encoders import BackboneSettings, Encoded, TokenEncoder, TokenEncoderSettings
from genview.errors import UserError
from genview.generators import EmbeddedSettings, GenerateSettings, Job, Text, ViewTable, generate
from genview.generators.fit import FitSettings, fit
from genview.generators.sampler import noise_for
from genview.generators.token_diffusion import NetworkSettings
from genview.generators.windows import Windows
from genview.noise import Adaptive
from genview.seeds import seed_of

TRUNK = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}, stem_stride=2)
ENCODER = TokenEncoderSettings(TRUNK, tokens_from=3, condition_from=(0, 2), channels=4)
FIT = FitSettings(
    network=NetworkSettings(widths=(16, 32), layers=1),
    samples=48,
    batch=8,
    workers=0,
    save_every=2,
    measure_every=1,
    device="cpu",
)


class Echo:
    """A generator without a network: its views are the seed's noise around the condition's mean."""

    name = "echo"
    size = 8

    def __init__(self) -> None:
        self.encoder = self
        self.calls = 0

    def encode(self, images: Tensor) -> Encoded:
        flat = images.flatten(1)[:, :4]
        return Encoded(flat[:, None], flat, (1, 1))

    def sample(
        self,
        condition: Tensor,  # noqa: ARG002
        level: Tensor,
        guidance: Tensor,
        seeds: Sequence[int],
        texts: Sequence[Text] | None = None,  # noqa: ARG002
    ) -> Tensor:
        self.calls += 1
        noise = noise_for(seeds, (3, self.size, self.size), "latent") * level.view(-1, 1, 1, 1) / 400
        return ((noise + guidance.view(-1, 1, 1, 1)).clamp(0, 1) * 255).to(torch.uint8)

    def exact(self) -> Echo:
        return self


def job(count: int = 10, **changes: object) -> Job:
    chance = np.random.default_rng(0)
    made = Job(
        keys=[f"folder/ä {i}.png" for i in range(count)],
        ratio=chance.uniform(size=count).astype(np.float32),
        embedding=chance.normal(size=(count, 4)).astype(np.float16),
        policy=Adaptive(),
        guidance=0.5,
        batch=4,
        seed=7,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def quiet(_what: str, _done: int, _total: int, _note: str) -> None:
    return


def make(folder: Path, job_: Job, settings: GenerateSettings, generator: Echo | None = None) -> ViewTable:
    generate(job_, generator or Echo(), settings, folder, identity={"a": 1}, tell=quiet)  # type: ignore[arg-type]
    return ViewTable(folder)


def test_every_image_gets_its_views_with_its_own_level_and_seed(tmp_path: Path) -> None:
    views = make(tmp_path, job(), GenerateSettings(draws=2, shard=7, format="png"))
    rows = views.rows
    assert len(views) == 20
    assert sorted(zip(rows["key"], rows["draw"], strict=True)) == [(k, d) for k in sorted(job().keys) for d in (0, 1)]
    for key, draw, level, seed in zip(rows["key"], rows["draw"], rows["level"], rows["seed"], strict=True):
        ratio = job().ratio[job().keys.index(key)]
        assert level == min(400, 100 * int(np.ceil(ratio / 0.2) - 1))
        assert seed == seed_of(7, key, int(draw), "view")


def test_views_do_not_depend_on_shards_batches_or_order(tmp_path: Path) -> None:
    one = make(tmp_path / "one", job(), GenerateSettings(shard=10, format="png"))
    other_job = job()
    order = np.random.default_rng(1).permutation(10)
    shuffled = replace(
        other_job,
        keys=[other_job.keys[i] for i in order],
        ratio=other_job.ratio[order],
        embedding=other_job.embedding[order],
        batch=3,
    )
    two = make(tmp_path / "two", shuffled, GenerateSettings(shard=4, format="png"))
    for key in other_job.keys:
        (a, level_a), (b, level_b) = one.find(key, 0), two.find(key, 0)  # type: ignore[misc]
        assert np.array_equal(np.asarray(a), np.asarray(b))
        assert level_a == level_b


def test_a_resumed_run_makes_what_is_missing_and_ends_in_the_same_bytes(tmp_path: Path) -> None:
    settings = GenerateSettings(shard=4)
    make(tmp_path / "whole", job(), settings)
    make(tmp_path / "cut", job(), settings)
    for stale in ("part-00001.parquet", "part-00002.tar", "part-00002.parquet"):
        (tmp_path / "cut" / stale).unlink()
    (tmp_path / "cut" / ".part-00001.tar.1.part").write_bytes(b"half")
    counted = Echo()
    make(tmp_path / "cut", job(), settings, counted)
    assert counted.calls == 2, "one batch for each of the two shards without a table"
    names = sorted(p.name for p in (tmp_path / "whole").iterdir())
    assert names == sorted(p.name for p in (tmp_path / "cut").iterdir())
    for name in names:
        assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "cut" / name).read_bytes()


def test_a_folder_of_other_settings_is_refused(tmp_path: Path) -> None:
    make(tmp_path, job(), GenerateSettings(shard=4))
    with pytest.raises(UserError, match="shard: there 4, now 5"):
        make(tmp_path, job(), GenerateSettings(shard=5))


def test_finding_views(tmp_path: Path) -> None:
    views = make(tmp_path, job(3), GenerateSettings(draws=2))
    assert views.find("absent", 0) is None
    pixels = [np.asarray(views.find(job().keys[1], n)[0]) for n in range(3)]  # type: ignore[index]
    assert np.array_equal(pixels[0], pixels[2])
    assert not np.array_equal(pixels[0], pixels[1])
    assert views.missing([*job(3).keys, "absent"]) == 1
    with pytest.raises(UserError, match="run `genview generate` first"):
        ViewTable(tmp_path / "nothing")


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
    with pytest.raises(UserError, match="multiple of 4 pixels"):
        EmbeddedSettings(weights=str(fitted[0]), size=33).load("cpu")
