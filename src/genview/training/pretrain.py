"""The pretraining loop: per-pair losses times the weights of the pairs (GenView, eq. for L_QD)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from genview.distributed import global_mean, rank, world_size
from genview.encoders.backbone import Backbone, BackboneSettings, export
from genview.errors import UserError
from genview.images.order import positions
from genview.images.origin import Origin
from genview.methods import Method
from genview.pairs import PairBatch, Pairs, collate
from genview.quality import Quality
from genview.seeds import seed_of
from genview.store import RunFolder, sweep
from genview.training.duration import steps_of
from genview.training.examples import PairExamples
from genview.training.optimizer import Sgd, rate_at, set_rate
from genview.training.state import TrainState

Weigh = Callable[[Sequence[Tensor], Origin, float], Quality]
"""(views B×3×S×S in [0, 1], where they come from, share of the training that is done) → quality of their pairs."""
Probe = Callable[[nn.Module], Iterable[tuple[str, float]]]
Tell = Callable[[str, int, int, str], None]
"""(what, done, total, note): progress for whoever shows it."""


@dataclass(frozen=True)
class TrainSettings:
    """Backbone, length and batch (over all processes), optimizer, and how often to look and to save."""

    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    length: str = "100 epochs"
    batch: int = 256
    optimizer: Sgd = field(default_factory=Sgd)
    warmup: str = "0 epochs"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    workers: int = 2
    measure_every: str = "10 steps"
    probe_every: str = "10 epochs"
    save_every: str = "1 epochs"


@dataclass(frozen=True)
class Plan:
    """The durations of `TrainSettings` in steps."""

    steps: int
    warmup: int
    measure: int
    probe: int
    save: int


def plan_of(settings: TrainSettings, images: int) -> Plan:
    """Resolve the durations for this many images.

    Raises:
        UserError: a duration cannot be read, or there are fewer images than one batch.
    """
    texts = (
        settings.length,
        settings.warmup,
        settings.measure_every,
        settings.probe_every,
        settings.save_every,
    )
    return Plan(*(steps_of(text, images=images, batch=settings.batch) for text in texts))


def pretrain(
    method: Method,
    pairs: Pairs,
    settings: TrainSettings,
    run: RunFolder,
    *,
    weigh: Weigh | None,
    probe: Probe | None,
    tell: Tell,
) -> Backbone:
    """Train a backbone on pairs, continuing from the run's checkpoint where there is one.

    Writes measures, checkpoints, example pairs, and at the end `backbone.safetensors`.

    Raises:
        UserError: settings that cannot work, a full disk, or a loss that is not finite.
    """
    fabric = make_fabric(settings)
    plan = plan_of(settings, pairs.epoch)
    torch.manual_seed(seed_of(pairs.seed, "", 0, "weights"))
    learner = method.build(Backbone(settings.backbone)).to(fabric.device)
    learner.to(memory_format=torch.channels_last)  # a fifth faster on CPU, and what tensor cores want
    optimizer = settings.optimizer.build(learner)
    state = TrainState(learner, optimizer)
    last = run.checkpoints / "last.pt"
    sweep(run.checkpoints)
    if last.exists():
        state.load(last, fabric.device)
    run.forget_after(state.step, ("train/", "online/", "quality/"))
    module, wrapped = fabric.setup(learner, optimizer)
    loop = Loop(fabric, module, wrapped, state, settings, plan, run, weigh, probe, tell, pairs.seed)
    loop.run_through(pairs)
    if rank() == 0:
        export(learner.backbone, run.backbone)
    return learner.backbone


def make_fabric(settings: TrainSettings) -> Fabric:
    """Return Fabric for the device and precision; 'auto' means bfloat16 on CUDA devices that have it."""
    cuda = torch.cuda.is_available() and settings.device in ("auto", "cuda")
    half = settings.precision == "bfloat16" or (
        settings.precision == "auto" and cuda and torch.cuda.is_bf16_supported()
    )
    fabric = Fabric(
        accelerator="cuda" if cuda else "cpu" if settings.device == "auto" else settings.device,
        devices="auto" if cuda else 1,
        precision="bf16-mixed" if half else "32-true",
    )
    fabric.launch()
    return fabric


@dataclass
class Loop:
    """One run through the steps that are left."""

    fabric: Fabric
    module: nn.Module
    optimizer: torch.optim.Optimizer
    state: TrainState
    settings: TrainSettings
    plan: Plan
    run: RunFolder
    weigh: Weigh | None
    probe: Probe | None
    tell: Tell
    seed: int
    waited: float = 0.0
    since: float = field(default_factory=time.perf_counter)
    examples: PairExamples = field(default_factory=PairExamples)
    features: Tensor | None = None

    def run_through(self, pairs: Pairs) -> None:
        """Take every step from the state's to the last."""
        hook = self.state.learner.backbone.register_forward_hook(self._keep_features)
        self.module.train()
        for batch in self._batches(pairs):
            self.step(batch, [pairs.source.key(int(i)) for i in batch.origin.image])
        hook.remove()
        if rank() == 0:
            self.examples.save(self.run.pairs / "examples.npz")

    def step(self, batch: PairBatch, keys: list[str]) -> None:
        """Rate, views, weights, loss, backward, step; then measure, probe and save when it is time."""
        for key, reason in batch.unreadable:
            self.run.quarantine(key, reason)
        done = self.state.step
        torch.manual_seed(seed_of(self.seed, f"process {rank()}", done, "layers"))
        rate = rate_at(done, steps=self.plan.steps, warmup=self.plan.warmup, peak=self.settings.optimizer.rate)
        set_rate(self.optimizer, rate)
        views = batch.shown(self.fabric.device)
        quality = self.weigh(views, batch.origin, done / self.plan.steps) if self.weigh else None
        losses = self.module(*views).float()
        loss = (losses * quality.weight).mean() if quality else losses.mean()
        self._check(loss, losses, keys)
        self.fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step = done + 1
        self.state.learner.after_step(self.state.step / self.plan.steps)
        self._after(loss, quality, rate, batch, keys)

    def _after(self, loss: Tensor, quality: Quality | None, rate: float, batch: PairBatch, keys: list[str]) -> None:
        step = self.state.step
        at_end = step == self.plan.steps
        if step % self.plan.measure == 0 or at_end:
            self._measure(float(global_mean(loss.detach())), quality, rate)
            if quality:
                self.examples.offer(batch.views[0], batch.views[1], quality, batch.levels.amax(dim=1), keys)
        if self.probe and (step % self.plan.probe == 0 or at_end):
            for name, value in self.probe(self.state.learner.backbone):
                self.run.measure(f"online/{name}", value, step)
        if rank() == 0 and (step % self.plan.save == 0 or at_end):
            self.state.save(self.run.checkpoints / "last.pt")

    def _measure(self, loss: float, quality: Quality | None, rate: float) -> None:
        step, now = self.state.step, time.perf_counter()
        taken, waited = max(now - self.since, 1e-9), self.waited
        self.since, self.waited = now, 0.0
        values = {
            "train/loss": loss,
            "train/rate": rate,
            "train/feature_std": feature_std(self.features) if self.features is not None else float("nan"),
            "train/images_per_second": self.plan.measure * self.settings.batch / taken,
            "train/waiting": min(1.0, waited / taken),
        }
        if quality:
            values |= {
                "quality/weight_std": float(quality.weight.std()),
                "quality/foreground": float(quality.foreground.mean()),
                "quality/background": float(quality.background.mean()),
            }
        if rank() == 0:
            for name, value in values.items():
                self.run.measure(name, value, step)
            note = f"loss {loss:.3f} · {values['train/images_per_second']:.0f} images/s"
            self.tell("pretrain", step, self.plan.steps, f"{note} · waiting for data {values['train/waiting']:.0%}")

    def _check(self, loss: Tensor, losses: Tensor, keys: list[str]) -> None:
        if bool(torch.isfinite(loss)):
            return
        bad = [key for key, fine in zip(keys, torch.isfinite(losses).tolist(), strict=True) if not fine]
        raise UserError(
            f"The loss is not finite at step {self.state.step + 1} (first pairs concerned: "
            f"{', '.join(bad[:5]) or 'none alone, only their sum'}). The last good checkpoint is kept in "
            f"{self.run.checkpoints}. Lower training.optimizer.rate, lengthen training.warmup, or use float32."
        )

    def _batches(self, pairs: Pairs) -> Iterator[PairBatch]:
        order = positions(
            len(pairs),
            self.settings.batch,
            first=self.state.step,
            last=self.plan.steps,
            seed=pairs.seed,
            rank=rank(),
            world=world_size(),
        )
        loader: DataLoader[PairBatch] = DataLoader(
            pairs,  # type: ignore[arg-type]  # collate turns its items into batches
            batch_sampler=order,  # positions are (epoch, index) and need no length
            collate_fn=collate,
            num_workers=self.settings.workers,
            pin_memory=self.fabric.device.type == "cuda",
        )
        batches = iter(loader)
        while True:
            start = time.perf_counter()
            batch = next(batches, None)
            self.waited += time.perf_counter() - start
            if batch is None:
                return
            yield batch

    def _keep_features(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.features = output.detach()


def feature_std(features: Tensor) -> float:
    """Collapse monitor: standard deviation of unit-length features B×D over the batch, times √D.

    Near 1 when features spread in all directions, 0 when all images have the same one (SimSiam, section 4.1).
    """
    unit = nn.functional.normalize(features.float(), dim=1)
    return float(unit.std(dim=0).mean() * unit.shape[1] ** 0.5)
