"""View recipes: what happens to an image before an encoder sees it, as in the papers of the methods."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2

Transform = Callable[[Image.Image], Tensor]
RecipeName = Literal["moco_v2", "simsiam", "moco_v3", "small", "digits"]


@dataclass(frozen=True)
class ViewRecipe:
    """Probabilities and strengths of one view's augmentations, in the order in which they are applied."""

    scale: tuple[float, float] = (0.2, 1.0)
    flip: float = 0.5
    jitter: tuple[float, float, float, float] = (0.4, 0.4, 0.4, 0.1)
    jitter_share: float = 0.8
    grey: float = 0.2
    blur: float = 0.5
    solarise: float = 0.0

    def transform(self, size: int) -> Transform:
        """Return a function from an RGB image to a uint8 tensor 3×size×size; its randomness is torch's global one."""
        steps: Transform = v2.Compose(
            [
                v2.RandomResizedCrop(size, scale=self.scale, interpolation=InterpolationMode.BICUBIC, antialias=True),
                v2.RandomApply([v2.ColorJitter(*self.jitter)], p=self.jitter_share),
                v2.RandomGrayscale(self.grey),
                v2.RandomApply([blurred], p=self.blur),
                v2.RandomApply([ImageOps.solarize], p=self.solarise),
                v2.RandomHorizontalFlip(self.flip),
                v2.PILToTensor(),
            ]
        )
        return steps


def blurred(image: Image.Image) -> Image.Image:
    """Gaussian blur with a σ drawn from 0.1 to 2 pixels (SimCLR, MoCo v2); PIL's, which is 30 times faster on CPU."""
    sigma = float(torch.empty(()).uniform_(0.1, 2.0))
    return image.filter(ImageFilter.GaussianBlur(sigma))


def recipe(name: RecipeName) -> tuple[ViewRecipe, ViewRecipe]:
    """Return the recipes of the two views of a pair.

    `moco_v2` is section 3 of the MoCo v2 paper and also SimSiam's; `moco_v3` is BYOL's asymmetric pair as MoCo v3
    uses it for ResNets; `small` is the usual one for 32 px images, without blur; `digits` is for pictures whose
    meaning flips, greys and tight crops would change.
    """
    match name:
        case "moco_v2" | "simsiam":
            both = ViewRecipe()
            return both, both
        case "moco_v3":
            weak = (0.4, 0.4, 0.2, 0.1)
            return (
                ViewRecipe(jitter=weak, blur=1.0),
                ViewRecipe(jitter=weak, blur=0.1, solarise=0.2),
            )
        case "small":
            plain = ViewRecipe(blur=0.0)
            return plain, plain
        case "digits":
            gentle = ViewRecipe(scale=(0.5, 1.0), flip=0.0, grey=0.0, blur=0.0)
            return gentle, gentle
