"""Two processes with half a batch each are one process with the whole batch, for every method; spawned once."""

from __future__ import annotations

import copy
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from conftest import Painted
from genview.distributed import gathered, gathered_with_gradient, rank, world_size
from genview.encoders import BackboneSettings, TokenEncoder, TokenEncoderSettings
from genview.generators.fit import FitSettings, TokenDiffusion
from genview.generators.lesson import Lesson, LessonSettings
from genview.generators.token_diffusion import NetworkSettings
from genview.methods import Losses, Method
from genview.store import RunFolder
from genview.training.batchnorm import synchronised
from genview.training.fit import fit
from genview.training.task import Task
from learners import SMALL, Guess, gradients, learner_of, objective, views_for

BATCH = 8
STEPS = 2
Found = dict[str, Any]


def mine() -> slice:
    share = BATCH // world_size()
    return slice(rank() * share, (rank() + 1) * share)


def weights_like(pairs: Tensor, step: int) -> Tensor:
    """Weights of the global batch with mean one, of which this process takes its part."""
    chance = torch.Generator().manual_seed(100 + step)
    grown = torch.exp(torch.randn(BATCH, *pairs.shape[1:], generator=chance, dtype=torch.float64))
    return (grown / grown.mean())[mine()]


def trained(method: Method) -> Found:
    """Train for two steps with weights; losses and gradients of each step, and the state at the end."""
    learner: nn.Module = learner_of(method, kind=torch.float64)
    module = learner
    if world_size() > 1:
        learner = synchronised(learner)
        module = DistributedDataParallel(learner, gradient_as_bucket_view=True)
        module.broadcast_buffers = False
    optimizer = torch.optim.SGD([p for p in learner.parameters() if p.requires_grad], lr=0.05)
    found: Found = {}
    for step in range(STEPS):
        views = [view[mine()] for view in views_for(learner, BATCH, seed=step, kind=torch.float64)]  # type: ignore[arg-type]
        losses = module(*views)
        pairs = losses.pairs if isinstance(losses, Losses) else losses
        weights = None if pairs is None else weights_like(pairs, step)
        objective(losses, weights).backward()
        found[f"pairs {step}"] = None if pairs is None else gathered(pairs)
        found[f"batch {step}"] = losses.batch.detach() if isinstance(losses, Losses) else None
        found[f"gradients {step}"] = gradients(learner)
        learner.before_step(step / STEPS)  # type: ignore[operator]
        optimizer.step()
        optimizer.zero_grad()
        learner.after_step((step + 1) / STEPS)  # type: ignore[operator]
    found["state"] = learner.state_dict()
    return found


NORMS = {
    "2d, channels last": (nn.BatchNorm2d(3), (BATCH, 3, 5, 4), torch.float64),
    "1d": (nn.BatchNorm1d(3), (BATCH, 3), torch.float64),
    "no scale and shift": (nn.BatchNorm1d(3, affine=False), (BATCH, 3), torch.float64),
    "cumulative average": (nn.BatchNorm1d(3, momentum=None), (BATCH, 3), torch.float64),
    "with activation": (BatchNormAct2d(3), (BATCH, 3, 5, 4), torch.float64),
    "half precision": (nn.BatchNorm2d(3), (BATCH, 3, 5, 4), torch.bfloat16),
}


def normed(name: str) -> Found:
    """Two passes through a BatchNorm: outputs, gradients of input and weights, running statistics."""
    norm, shape, kind = NORMS[name]
    layer = nn.Sequential(copy.deepcopy(norm)).to(torch.float32 if kind == torch.bfloat16 else kind)
    layer.load_state_dict({key: torch.full_like(value, 1) for key, value in layer.state_dict().items()})
    if world_size() > 1:
        layer = synchronised(layer)  # type: ignore[assignment]
    found: Found = {}
    for step in range(2):
        chance = torch.Generator().manual_seed(step)
        x = (3 + 2 * torch.randn(shape, generator=chance, dtype=torch.float64)).to(kind)[mine()]
        x = x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x
        y = layer(x.requires_grad_())
        assert y.dtype == kind
        assert y.ndim < 4 or y.is_contiguous(memory_format=torch.channels_last)
        y.double().sin().sum().backward()
        found |= {f"y {step}": gathered(y), f"x {step}": gathered(x.grad)}  # type: ignore[arg-type]
    for weight, p in layer.named_parameters():
        found[weight] = gathered(p.grad[None]).sum(dim=0)  # type: ignore[index]
    return found | {"state": layer.state_dict()}


def products() -> Found:
    """Gradient of a loss that multiplies every row of one process with every row of all."""
    x = torch.arange(BATCH * 3, dtype=torch.float64).view(BATCH, 3).sin()[mine()].requires_grad_()
    (x @ gathered_with_gradient(x).T).pow(3).sum().backward()
    return {"gradient": gathered(x.grad)}  # type: ignore[arg-type]


LESSONS = {"fit, float64": 1e-10, "fit, TokenDiffusion": 1e-4}
"""Trainings of generators, and how far their numbers may differ: a UNet of diffusers computes partly in float32."""
LESSON = LessonSettings(
    size=8,
    zoom=1.0,
    samples=32,
    batch=BATCH,
    rate=0.05,
    warmup=2,
    clip=0.05,
    workers=0,
    measure_every=2,
    device="cpu",
)
GENERATOR = FitSettings(
    network=NetworkSettings((16, 32), 1),
    samples=16,
    batch=BATCH,
    workers=0,
    sample_every=2,
    measure_every=1,
    device="cpu",
)


def lesson_of(kind: str) -> tuple[Lesson, LessonSettings]:
    torch.manual_seed(0)
    if kind == "fit, float64":
        return Guess(), LESSON
    trunk = BackboneSettings("resnet18", {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]}, stem_stride=2)
    return TokenDiffusion(
        TokenEncoder(TokenEncoderSettings(trunk, 3, (0, 2), 4, gist_channels=6)), GENERATOR
    ), GENERATOR


def taught(kind: str, folder: Path) -> Found:
    """A generator's training as under torchrun: its weights and average at the end, and its measures."""
    torch.set_default_dtype(torch.float64 if "float64" in kind else torch.float32)
    try:
        lesson, settings = lesson_of(kind)
        size = settings.size
        held = (
            torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)) if size == 32 else torch.empty(0)
        )
        run = RunFolder(folder / kind)
        fit(Task(lesson, Painted(20, size=size), held, settings, run, seed=0), lambda *_: None)
        if world_size() > 1:
            dist.barrier()
        state = torch.load(run.root / "training.pt", weights_only=True)
    finally:
        torch.set_default_dtype(torch.float32)
    noted = {f"{m.name} {m.step}": m.value for m in run.measures() if "loss" in m.name or "online" in m.name}
    return {"own": lesson.state_dict(), "average": state["average"]["weights"], "noted": noted}


def under_torchrun(rank: int, world: int) -> dict[str, str]:
    """What torchrun would have put into the environment of this process."""
    return {
        "TORCHELASTIC_RUN_ID": "two",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(world),
        "LOCAL_WORLD_SIZE": str(world),
    }


def everything(folder: Path) -> Found:
    methods = {method.kind: trained(method) for method in SMALL}
    lessons = {kind: taught(kind, folder) for kind in LESSONS}
    return methods | lessons | {name: normed(name) for name in NORMS} | {"products": products()}


def one_of_two(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    before = dict(os.environ)
    os.environ |= under_torchrun(rank, 2)
    meeting, patience = f"file://{folder}/meeting", timedelta(minutes=10)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2, timeout=patience)
    try:
        torch.save(everything(Path(folder) / "together"), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()
        os.environ.clear()
        os.environ |= before


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    """What one process found, and what each of two did."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("two")
    other = torch.multiprocessing.get_context("spawn").Process(target=one_of_two, args=(1, str(folder)))
    other.start()
    one_of_two(0, str(folder))
    other.join()
    assert other.exitcode == 0
    return [everything(folder / "alone"), *(torch.load(Path(folder) / f"{r}.pt", weights_only=True) for r in (0, 1))]


def same(together: Any, alone: Any, tolerance: float) -> None:
    torch.testing.assert_close(together, alone, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("kind", [method.kind for method in SMALL])
def test_two_processes_train_as_one(found: list[Found], kind: str) -> None:
    alone = found[0][kind]
    assert len(alone["gradients 0"]) > 10
    for together in (found[1][kind], found[2][kind]):
        assert together["state"].keys() == alone["state"].keys()
        for what in alone:
            same(together[what], alone[what], 1e-9)


@pytest.mark.parametrize(("kind", "tolerance"), LESSONS.items())
def test_two_processes_train_a_generator_as_one(found: list[Found], kind: str, tolerance: float) -> None:
    """Weights, their average, noise, losses; and the samples that the first process draws meanwhile."""
    for together in (found[1][kind], found[2][kind]):
        same(together, found[0][kind], tolerance)
    assert len(found[1][kind]["noted"]) == (2 if "float64" in kind else 2 + 9)


@pytest.mark.parametrize("name", NORMS)
def test_batchnorm_over_two_processes_is_batchnorm_over_the_batch(found: list[Found], name: str) -> None:
    for together in found[1:]:
        same(together[name], found[0][name], 0.02 if name == "half precision" else 1e-10)


def test_gathered_rows_get_the_gradients_of_all_processes(found: list[Found]) -> None:
    for together in found[1:]:
        same(together["products"], found[0]["products"], 1e-12)


def test_synchronised_keeps_names_and_replaces_every_norm() -> None:
    learner = learner_of(SMALL[0])
    names = list(learner.state_dict())
    parameters = [id(p) for p in learner.parameters()]
    assert synchronised(learner) is learner
    assert list(learner.state_dict()) == names
    assert [id(p) for p in learner.parameters()] == parameters
    assert not any(type(part) in (nn.BatchNorm1d, nn.BatchNorm2d) for part in learner.modules())
    alone, plain = synchronised(nn.BatchNorm1d(4)), nn.BatchNorm1d(4)
    x = torch.rand(6, 4)
    torch.testing.assert_close(alone(x), plain(x))
    torch.testing.assert_close(alone.eval()(x), plain.eval()(x))
