"""The pretraining loop: per-pair losses times the weights of the pairs (GenView, eq. for L_QD)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.utils.data import DataLoader

from genview.distributed import global_mean, rank, world_size
from genview.encoders import Backbone
from genview.errors import UserError
from genview.images.order import positions
from genview.images.origin import Origin
from genview.methods import Learner, Losses
from genview.pairs import PairBatch, Pairs, collate
from genview.quality import Quality
from genview.seeds import seed_of
from genview.training.best import Best
from genview.training.interrupt import Interruption
from genview.training.monitors import feature_std, rank_me, tails
from genview.training.optimizer import schedule
from genview.training.record import Record
from genview.training.settings import Plan, TrainSettings
from genview.training.state import TrainState

Weigh = Callable[[Sequence[Tensor], Origin, float], Quality]
"""(views B×3×S×S in [0, 1], where they come from, share of the training that is done) → quality of their pairs."""


class Probe(Protocol):
    """What looks at a backbone in training; `protocol` is its name and version, as in 'online-1'."""

    @property
    def protocol(self) -> str: ...  # noqa: D102

    def __call__(self, backbone: Backbone) -> Iterable[tuple[str, float]]:
        """Yield names and values in [0, 1], of images that are not trained on; by the first the best is chosen."""
        ...


@dataclass(frozen=True)
class Step:
    """What a step leaves to be looked at: its number (from 1), loss, losses of its pairs, weights and so on."""

    number: int
    batch: PairBatch
    loss: Tensor
    losses: Tensor | None
    quality: Quality | None
    rate: float
    norm: Tensor | None


@dataclass
class Loop:
    """One run through the steps that are left."""

    fabric: Fabric
    module: nn.Module
    optimizer: torch.optim.Optimizer
    state: TrainState[Learner]
    settings: TrainSettings
    plan: Plan
    record: Record
    weigh: Weigh | None
    probe: Probe | None
    pairs: Pairs
    best: Best
    features: Tensor | None = None

    def run_through(self) -> None:
        """Take every step from the state's to the last.

        Raises:
            UserError: a loss is not finite.
            KeyboardInterrupt: Ctrl-C or SIGTERM was heard; what is reached is saved.
        """
        if self.probe and self.settings.start_from is not None and self.state.step == 0 and rank() == 0:
            self._probe(self.probe, 0)
        hook = self.state.learner.backbone.register_forward_hook(self._keep_features)
        self.module.train()
        before: Step | None = None
        with Interruption() as interruption:
            for batch in interruption.until_asked(self._batches()):
                step = self.step(batch)
                # A look at the present loss would make the processor wait for the device; the last one is long there.
                self._check(before if before and not self._due(step.number) else step)
                self._after(step)
                before = step
            if interruption.asked:
                self._stop(before)
        hook.remove()

    def step(self, batch: PairBatch) -> Step:
        """Rate, views, weights, losses, backward, step."""
        done, learner = self.state.step, self.state.learner
        progress = done / self.plan.steps
        seed_layers(seed_of(self.pairs.seed, f"process {rank()}", done, "layers"))
        rate = schedule(self.optimizer, self.settings.optimizer, done, steps=self.plan.steps, warmup=self.plan.warmup)
        views = batch.shown(self.fabric.device)
        quality = self._weighed(views, batch.origin, progress)
        loss, losses = self._backward(views, quality)
        learner.before_step(progress)
        norm = self._clip() if self.settings.clip or self._due(done + 1) else None
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step = done + 1
        learner.after_step(self.state.step / self.plan.steps)
        return Step(self.state.step, batch, loss, losses, quality, rate, norm)

    def _weighed(self, views: list[Tensor], origin: Origin, progress: float) -> Quality | None:
        """Quality of the pairs. The frozen encoder, often larger than what is trained, computes in bfloat16 too.

        Not in float16, in which one that was never trained in it may overflow.
        """
        if self.weigh is None:
            return None
        wide_enough = self.fabric.strategy.precision.precision == "bf16-mixed"
        with self.fabric.autocast() if wide_enough else nullcontext():
            return self.weigh(views, origin, progress)

    def _backward(self, views: list[Tensor], quality: Quality | None) -> tuple[Tensor, Tensor | None]:
        """Take gradients of the weighted mean; return it, and the losses of the pairs without their weights."""
        parts = self.settings.accumulate
        weights = quality.weight.chunk(parts) if quality else [None] * parts
        total, pairs = torch.zeros((), device=self.fabric.device), []
        for k, shown in enumerate(zip(*(view.chunk(parts) for view in views), strict=True)):
            with self.fabric.no_backward_sync(self.module, enabled=k + 1 < parts):  # type: ignore[arg-type]
                loss, own = combined(self.module(*shown), weights[k])
                self.fabric.backward(loss / parts)
            total += loss.detach() / parts
            pairs += [] if own is None else [own]
        return total, torch.cat(pairs) if pairs else None

    def _clip(self) -> Tensor | None:
        """Bound the norm of the gradient and return it."""
        most = self.settings.clip or float("inf")
        return self.fabric.clip_gradients(
            self.module,
            self.optimizer,
            max_norm=most,
            error_if_nonfinite=False,
        )

    def _due(self, number: int) -> bool:
        """Whether step `number` is to be measured or saved."""
        return any(self._time_for(every, number) for every in (self.plan.measure, self.plan.save))

    def _time_for(self, every: int, number: int) -> bool:
        return number % every == 0 or number == self.plan.steps

    def _after(self, step: Step) -> None:
        self.record.quarantine(step.batch.unreadable)
        if self._time_for(self.plan.measure, step.number):
            self._measure(step)
        if self.probe and self._time_for(self.plan.probe, step.number) and rank() == 0:
            self._probe(self.probe, step.number)
        if self._time_for(self.plan.save, step.number):
            self._save()

    def _save(self) -> None:
        if rank() == 0:
            self.record.keep()
            self.state.save(self.record.run.checkpoints / "last.pt")
            self.best.settle()

    def _stop(self, last: Step | None) -> None:
        """Save what is reached, and stop."""
        if last:
            self._check(last)
            self._save()
        raise KeyboardInterrupt

    def _probe(self, probe: Probe, number: int) -> None:
        """Note what the probe finds; its first score says which backbone is the best."""
        backbone = self.state.learner.backbone
        found = list(probe(backbone))
        self.record.measures({f"online/{name}": value for name, value in found}, number, probe.protocol)
        for _, score in found[:1]:
            self.best.offer(backbone, score, number)

    def _measure(self, step: Step) -> None:
        values = {"train/loss": float(global_mean(step.loss)), "train/rate": step.rate}
        if step.norm is not None:
            values["train/gradient_norm"] = float(step.norm)
        if step.losses is not None:
            values["train/loss_low"], values["train/loss_high"] = tails(step.losses)
        if self.features is not None:
            values["train/feature_std"] = feature_std(self.features)
            values["train/rankme"] = rank_me(self.features)
        values |= {f"train/{name}": value for name, value in self.state.learner.measures().items()}
        if step.quality:
            values |= {
                "quality/weight_std": float(step.quality.weight.std()),
                "quality/foreground": float(step.quality.foreground.mean()),
                "quality/background": float(step.quality.background.mean()),
            }
        seen = step.batch.looked(self.fabric.device)
        self.record.examples(seen, step.quality, self.pairs.source, step.losses, step.number)
        self.record.progress(values, step.number)

    def _check(self, step: Step) -> None:
        if bool(torch.isfinite(step.loss)):
            return
        bad: list[str] = []
        if step.losses is not None:
            fine = torch.isfinite(step.losses.flatten(1) if step.losses.ndim > 1 else step.losses[:, None]).all(dim=1)
            bad = [key for key, good in zip(self._keys(step.batch), fine.tolist(), strict=True) if not good]
        raise UserError(
            f"The loss is not finite at step {step.number} (first pairs concerned: "
            f"{', '.join(bad[:5]) or 'none alone, only their sum'}). The last good checkpoint is kept in "
            f"{self.record.run.checkpoints}. Lower training.optimizer.rate, lengthen training.warmup, or use float32."
        )

    def _keys(self, batch: PairBatch) -> list[str]:
        return [self.pairs.source.key(int(i)) for i in batch.origin.image]

    def _batches(self) -> Iterator[PairBatch]:
        order = positions(
            len(self.pairs),
            self.settings.batch,
            first=self.state.step,
            last=self.plan.steps,
            seed=self.pairs.seed,
            rank=rank(),
            world=world_size(),
        )
        loader: DataLoader[PairBatch] = DataLoader(
            self.pairs,  # type: ignore[arg-type]  # collate turns its items into batches
            batch_sampler=order,  # positions are (epoch, index) and need no length
            collate_fn=collate,
            num_workers=self.settings.workers,
            pin_memory=self.fabric.device.type == "cuda",
        )
        batches = iter(loader)
        while True:
            with self.record.waiting():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def _keep_features(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.features = output.detach()


def combined(found: Tensor | Losses, weight: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return the loss to take gradients of, and those of the pairs without their weights (None: there are none).

    The losses of pairs, B or B×P, are multiplied by weights of the same shape and averaged; what belongs to the
    whole batch is added as it is.
    """
    if isinstance(found, Tensor):
        losses = found.float()
        return (losses if weight is None else losses * weight).mean(), losses.detach()
    if found.pairs is None:
        return found.batch.float(), None
    loss, pairs = combined(found.pairs, weight)
    return loss + found.batch.float(), pairs


def seed_layers(seed: int) -> None:
    """Seed what layers draw on the processor and, where there are GPUs, on those."""
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)
