"""A student that makes in few steps what its teacher, a trained denoiser, makes in many.

Progressive distillation (Salimans & Ho, 2022) without its rounds: the student takes the step between two of its own
times at once, the teacher the same way in several, and the student learns to arrive where the teacher does. There are
few such times, they are known in advance, and the teacher is never a student itself, so no error is passed on. The
student learns from the points that it comes to itself, as at sampling (Kohler et al., 2024), since from any point the
teacher's way can be computed. What a normal distribution of pixels would ask of it is built in: see `student`.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from genview.encoders.token_encoder import TokenEncoder
from genview.errors import UserError
from genview.generators.embedded import EmbeddedSettings
from genview.generators.fit import TokenDiffusion, write_layout
from genview.generators.generator import Generator
from genview.generators.lesson import Lesson, LessonSettings, below, normal_like
from genview.generators.student import Student, TimeGrid
from genview.generators.token_diffusion import NOTHING_KNOWN, NoisedCode, Sampling


@dataclass(frozen=True)
class DistilSettings(LessonSettings):
    """How a student is trained: see `LessonSettings`; its steps, and those of the teacher for each of them.

    With a `guidance` other than 1 the teacher runs twice a step and the student learns the guided solution, so that
    views cost half; they are then sampled with guidance 1.
    """

    samples: int = 50_000
    rate: float = 3e-4
    warmup: int = 100
    student_steps: int = 4
    teacher_steps: int = 8
    guidance: float = 1.0

    def check(self, times: int) -> None:
        """Check the numbers against the number of times that the networks know.

        Raises:
            UserError: one is out of range.
        """
        if not 1 <= self.student_steps <= 8:
            raise UserError(f"distil.student_steps is {self.student_steps}; a student takes 1 to 8 steps.")
        most = times // self.student_steps
        if not 1 <= self.teacher_steps <= most:
            raise UserError(
                f"distil.teacher_steps is {self.teacher_steps}; write 1 to {most}: the {times} times of the network, "
                f"divided by distil.student_steps {self.student_steps}."
            )


class Distillation(Lesson):
    """Teacher, which stays as it is, and student, which starts as its copy; forward is the student's loss.

    Args:
        teacher: the lesson that the teacher was trained by, which knows how its codes are noised.
        settings: the steps of both.

    Raises:
        UserError: a number is out of range.
    """

    def __init__(self, teacher: TokenDiffusion, settings: DistilSettings) -> None:
        super().__init__()
        kept = teacher.pixels.alphas_cumprod
        settings.check(len(kept))
        self.settings = settings
        self.teacher = teacher.requires_grad_(False)
        unet = copy.deepcopy(teacher.denoiser.unet).requires_grad_(True)
        self.denoiser = Student(teacher.encoder, unet, settings.student_steps)
        self.grid = TimeGrid(kept, settings.student_steps * settings.teacher_steps)
        self.train()

    @property
    def encoder(self) -> TokenEncoder:
        """The frozen encoder."""
        return self.denoiser.encoder

    def train(self, mode: bool = True) -> Distillation:
        """Switch the student alone."""
        super().train(mode)
        self.teacher.eval()
        self.encoder.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        """Losses B for images B×3×S×S in [0, 1]: squared error of x̂₀ against the teacher's, weighted as its own.

        The images give codes alone. Their noised pixels are not what the student meets when it samples.
        """
        code, level = self.teacher.noised_code(images)
        step = below(self.settings.student_steps, len(images), images.device)
        noise = normal_like(images)
        x, at = self.reached(noise, step, code, level), step * self.settings.teacher_steps
        t = self.grid.times[at]
        found = self.denoiser(x, t, code, level)
        shown = found + (found.clamp(-1, 1) - found).detach()  # the sampler clamps, and that has no gradient
        error = shown - self.target(x, at, code, level)
        _, spread = self.denoiser.guess(x, t, code)
        weight = spread.square().reciprocal().clamp(max=self.teacher.settings.snr)
        losses: Tensor = (error.square() * weight).mean(dim=(1, 2, 3))
        return losses

    def compiled_parts(self) -> list[nn.Module]:
        """Both UNets."""
        return [self.denoiser.unet, self.teacher.denoiser.unet]

    def save(self, folder: Path) -> None:
        """Write the student in its teacher's layout, which says how it is sampled."""
        made_for = Sampling(self.settings.student_steps, distilled=True, guidance=self.settings.guidance)
        write_layout(folder, self.encoder, self.denoiser.unet, made_for)

    def generator(self, folder: Path, device: torch.device) -> Generator:
        """Load it as `kind: embedded` does."""
        return EmbeddedSettings(weights=str(folder.absolute()), size=self.settings.size).load(device)

    @torch.no_grad()
    def reached(self, noise: Tensor, step: Tensor, code: NoisedCode, level: Tensor) -> Tensor:
        """Return where the student itself is, from noise, before its steps numbered `step` B."""
        x, each = noise, self.settings.teacher_steps
        for number in range(int(step.max())):
            at = torch.full_like(step, number * each)
            clean = self.denoiser(x, self.grid.times[at], code, level).clamp(-1, 1)
            x = torch.where((step > number).view(-1, 1, 1, 1), self.grid.step(x, clean, at, at + each), x)
        return x

    @torch.no_grad()
    def target(self, x: Tensor, at: Tensor, code: NoisedCode, level: Tensor) -> Tensor:
        """Return the x̂₀, within the range of pixels, with which one step arrives where the teacher's steps do.

        Args:
            x: noisy images B×3×S×S.
            at: positions B of the grid at which they are.
            code: noised codes of B images.
            level: levels B of their gist.
        """
        reached, before = x, None
        for here in at + torch.arange(self.settings.teacher_steps, device=at.device)[:, None]:
            found = self._taught(reached, self.grid.times[here], code, level)
            ahead = found if before is None else self.grid.extrapolated(found, before, here, here + 1)
            reached, before = self.grid.step(reached, ahead, here, here + 1), found
        clean: Tensor = self.grid.clean_for(x, reached, at, at + self.settings.teacher_steps)
        return clean.clamp(-1, 1)

    def _taught(self, x: Tensor, t: Tensor, code: NoisedCode, level: Tensor) -> Tensor:
        """The teacher's guided x̂₀, within the range of pixels as at sampling."""
        found: Tensor = self.teacher.denoiser(x, t, code, level).clamp(-1, 1)
        if self.settings.guidance == 1:
            return found
        nothing = torch.full_like(level, NOTHING_KNOWN)
        unknown = NoisedCode(*map(torch.zeros_like, code))
        unconditional = self.teacher.denoiser(x, t, unknown, nothing).clamp(-1, 1)
        guided: Tensor = unconditional + self.settings.guidance * (found - unconditional)
        return guided
