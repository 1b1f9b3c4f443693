"""The sampler that all generators share: pure functions on tensors, one row of a batch like any other."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from genview.errors import UserError
from genview.seeds import seed_of


class Step(NamedTuple):
    """One call of the network: its number from 0, its time, whether it is guided, and which rows it has."""

    number: int
    time: Tensor
    guided: bool
    rows: Tensor | None
    """Indices of the batch's rows that have begun; all of them where None."""


Predict = Callable[[Tensor, Step], tuple[Tensor, Tensor | None]]
"""Noisy rows and step → conditional prediction, and the unconditional one where the step is guided."""


def noise_for(seeds: Sequence[int], shape: Sequence[int], stream: str) -> Tensor:
    """Standard normal noise B×shape, float32 on the CPU; a row depends on its seed and the stream alone."""
    rows = [torch.Generator().manual_seed(seed_of(seed, "", 0, stream)) for seed in seeds]
    return torch.stack([torch.randn(tuple(shape), generator=row) for row in rows])


def noised_embedding(
    embedding: Tensor, level: Tensor, noise: Tensor, alphas_cumprod: Tensor, *, mean: Tensor, std: Tensor
) -> Tensor:
    """Noise embeddings B×E by their levels B, in float32: half precision would make level 0 and 100 others.

    With z = (c - mean) / std, the result is (√ᾱ_l z + √(1 - ᾱ_l) ε) · std + mean, as in Stable unCLIP.

    Args:
        embedding: c, B×E.
        level: l, B integers that index `alphas_cumprod`.
        noise: ε, B×E.
        alphas_cumprod: ᾱ, one value a level, falling from 1 to 0.
        mean: of c, broadcastable to B×E.
        std: of c, broadcastable to B×E.

    Raises:
        UserError: a level lies outside the schedule.
    """
    check_levels(level, alphas_cumprod)
    kept = alphas_cumprod.float().to(level.device)[level].unsqueeze(1)
    z = (embedding.float() - mean) / std
    return (kept.sqrt() * z + (1 - kept).sqrt() * noise.float()) * std + mean


def check_levels(level: Tensor, alphas_cumprod: Tensor) -> None:
    """See that levels lie inside a schedule.

    Raises:
        UserError: one does not.
    """
    last = len(alphas_cumprod) - 1
    if int(level.min()) < 0 or int(level.max()) > last:
        raise UserError(
            f"Noise levels go from 0 to {last}; found {int(level.min())} to {int(level.max())}. "
            "Mend the noise policy or the file of levels."
        )


@functools.cache
def unclip_schedule() -> Tensor:
    """ᾱ of the 1000 noise levels of unCLIP's embeddings: a squared cosine (Nichol & Dhariwal, 2021)."""
    from diffusers import DDPMScheduler

    scheduler: Any = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    alphas_cumprod: Tensor = scheduler.alphas_cumprod
    return alphas_cumprod


def noised_in_proportion(embedding: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """Noise embeddings B×E as unCLIP does, in units of each embedding's root mean square.

    For networks that were trained without such noise and without statistics of the embeddings; a level says how much
    of an embedding is left. See `noised_embedding`.
    """
    scale = embedding.float().square().mean(dim=1, keepdim=True).sqrt()
    return noised_embedding(embedding, level, noise, unclip_schedule(), mean=torch.zeros(1), std=scale)


def sinusoid(level: Tensor, width: int) -> Tensor:
    """Levels B → B×width, float32: cosines, then sines, at width/2 frequencies from 1 down towards 1/10000."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=level.device) * (-math.log(10000) / half))
    angles = level.float().unsqueeze(1) * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


@dataclass(frozen=True)
class Course:
    """A scheduler of diffusers, its number of steps, and the share of them from and to which steps are guided.

    Guidance can be confined to an interval (Kynkäänniemi et al., 2024): the other steps cost half.
    """

    scheduler: Any
    steps: int
    interval: tuple[float, float] = (0.0, 1.0)


def denoise(
    predict: Predict,
    course: Course,
    latents: Tensor,
    guidance: Tensor,
    *,
    begin: Tensor | None = None,
    dice: Sequence[torch.Generator] = (),
) -> Tensor:
    """Solve from noise to a clean sample.

    Classifier-free guidance (Ho & Salimans, 2022) has a scale of its own for every row:
    unconditional + guidance · (conditional - unconditional).

    Args:
        predict: the network; without an unconditional prediction there is no guidance.
        course: its scheduler is left as it was; fresh copies keep the state of this call. PNDM calls the network
            once more than its steps.
        latents: B×C×h×w; standard normal noise for rows that begin at step 0, noised to their own step for others.
        guidance: B scales.
        begin: B numbers of the step at which each row begins; 0 for all where None.
        dice: B generators, for solvers that roll dice at every step.

    Returns:
        The clean sample B×C×h×w.
    """
    begin = torch.zeros(len(latents), dtype=torch.int64) if begin is None else begin.cpu()
    firsts: list[int] = begin.unique().tolist()
    solvers = [Solver(course, latents.device, first, (begin == first).nonzero().flatten(), dice) for first in firsts]
    scale = guidance.to(latents).view(-1, *[1] * (latents.ndim - 1))
    guided = bool((guidance != 1).any())
    times = solvers[0].scheduler.timesteps
    from_noise = (begin == 0).to(latents.device).view(scale.shape)
    x = torch.where(from_noise, latents * solvers[0].scheduler.init_noise_sigma, latents)
    for number, t in enumerate(times):
        active = [solver for solver in solvers if solver.first <= number]
        if not active:
            continue
        rows = None if len(active) == len(solvers) else torch.cat([solver.rows for solver in active]).sort().values
        inside = guided and course.interval[0] <= number / len(times) < course.interval[1]
        shown = active[0].scheduler.scale_model_input(_of(x, rows), t)
        predicted, unconditional = predict(shown, Step(number, t, inside, rows))
        if unconditional is not None:
            predicted = unconditional + _of(scale, rows) * (predicted - unconditional)
        whole = predicted if rows is None else torch.zeros_like(x).index_copy(0, rows.to(x.device), predicted)
        x = _stepped(active, whole, t, x)
    return x


class Solver:
    """One of diffusers' schedulers with the state of the rows that begin at the step `first`."""

    def __init__(
        self, course: Course, device: torch.device, first: int, rows: Tensor, dice: Sequence[torch.Generator]
    ) -> None:
        self.scheduler, self.first, self.rows = prepared(course.scheduler, course.steps, device), first, rows
        takes_dice = "generator" in inspect.signature(self.scheduler.step).parameters
        self._more = {"generator": [dice[i] for i in rows.tolist()]} if dice and takes_dice else {}
        if first and hasattr(self.scheduler, "set_begin_index"):  # DDIM keeps no count
            self.scheduler.set_begin_index(first)

    def step(self, predicted: Tensor, t: Tensor, x: Tensor) -> Tensor:
        """Take its rows one step on."""
        found: Tensor = self.scheduler.step(predicted, t, x, return_dict=False, **self._more)[0]
        return found


def prepared(scheduler: Any, steps: int, device: torch.device | str) -> Any:
    """Return a fresh copy of a scheduler, with its times set."""
    fresh = copy.deepcopy(scheduler)
    with warnings.catch_warnings():
        # Some schedulers of diffusers turn a tensor into an array in a way that NumPy 2 frowns upon.
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        fresh.set_timesteps(steps, device=device)
    return fresh


def timesteps(scheduler: Any, steps: int) -> Tensor:
    """Times of the solver's calls, int64 on the CPU, from noise to clean."""
    found: Tensor = prepared(scheduler, steps, "cpu").timesteps.long()
    return found


def _stepped(active: Sequence[Solver], predicted: Tensor, t: Tensor, x: Tensor) -> Tensor:
    if len(active) == 1 and len(active[0].rows) == len(x):
        return active[0].step(predicted, t, x)
    for solver in active:
        rows = solver.rows.to(x.device)
        x = x.index_copy(0, rows, solver.step(predicted[rows], t, x[rows]).to(x.dtype))
    return x


def _of(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x[rows.to(x.device)]


def finished(images: Tensor, size: int) -> Tensor:
    """Turn what a decoder gave into views, on the device it is on.

    Args:
        images: B×3×H×W, nominally in [-1, 1]; what lies outside is clamped.
        size: side of the views in pixels.

    Returns:
        uint8 B×3×size×size, rounded. A row with a value that is not finite is black throughout.
    """
    images = images.float()
    fine = torch.isfinite(images).flatten(1).all(dim=1).view(-1, 1, 1, 1)
    images = torch.where(fine, images, 0).clamp(-1, 1)
    if images.shape[-1] != size:
        images = F.interpolate(images, (size, size), mode="bicubic", antialias=True)
    scaled = ((images + 1) * 127.5).round().clamp(0, 255)
    return torch.where(fine, scaled, 0).to(torch.uint8)
