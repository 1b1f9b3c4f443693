"""The recipes of the methods' papers: how each view of an image is augmented."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from genview.pairs.augment import ViewRecipe

RecipeName = Literal[
    "moco_v2",
    "simsiam",
    "moco_v3",
    "moco_v3_vit",
    "simclr",
    "byol",
    "swav",
    "dino",
    "barlow_twins",
    "vicreg",
    "stablerep",
    "small",
    "digits",
    "crops",
]

SMALL = (0.05, 0.14)
"""Areas of small crops in SwAV, where a paper has none."""
WEAK = (0.4, 0.4, 0.2, 0.1)
STRONG = (0.8, 0.8, 0.8, 0.2)


@dataclass(frozen=True)
class Recipe:
    """How the views of an image are made: the full-size ones by `full` in turn, small crops by `small`."""

    full: tuple[ViewRecipe, ...]
    small: ViewRecipe

    def changed(
        self, flip: float | None, smallest_crop: float | None, small: tuple[float, float] | None = None
    ) -> Recipe:
        """Replace the probability of a flip, the smallest area of full-size crops, and the areas of small crops."""
        full, crops = self.full, self.small
        if flip is not None:
            full, crops = tuple(replace(r, flip=flip) for r in full), replace(crops, flip=flip)
        if smallest_crop is not None:
            full = tuple(replace(r, scale=(smallest_crop, r.scale[1])) for r in full)
        return Recipe(full, crops if small is None else replace(crops, scale=small))


def recipe(name: RecipeName) -> Recipe:
    """Return a recipe by the name of its method.

    `moco_v2` is section 3 of the MoCo v2 paper and also SimSiam's; `moco_v3` is BYOL's asymmetric pair with the
    crops that MoCo v3 uses for ResNets, `moco_v3_vit` with those for ViTs; `simclr` appendix A at strength 1;
    `byol` its table 6, which Barlow Twins and VICReg took over; `swav` and `dino` are made for small crops;
    `stablerep` is MoCo v2's with wider crops and images that are now and then coarse; `small` is the usual one for
    32 px images, without blur; `digits` is for pictures whose meaning flips, greys and tight crops would change;
    `crops` cuts and flips, and leaves colours and sharpness as they are, for images whose meaning they carry.
    """
    return _RECIPES[name]


def _alike(one: ViewRecipe) -> Recipe:
    return Recipe((one,), replace(one, scale=SMALL))


def _asymmetric(scale: tuple[float, float]) -> Recipe:
    """BYOL's pair: one view always blurred, the other seldom, but now and then solarised."""
    first = ViewRecipe(scale=scale, jitter=WEAK, blur=1.0)
    second = ViewRecipe(scale=scale, jitter=WEAK, blur=0.1, solarise=0.2)
    return Recipe((first, second), ViewRecipe(scale=SMALL, jitter=WEAK))


_RECIPES: dict[RecipeName, Recipe] = {
    "moco_v2": _alike(ViewRecipe()),
    "simsiam": _alike(ViewRecipe()),
    "moco_v3": _asymmetric((0.2, 1.0)),
    "moco_v3_vit": _asymmetric((0.08, 1.0)),
    "byol": _asymmetric((0.08, 1.0)),
    "barlow_twins": _asymmetric((0.08, 1.0)),
    "vicreg": _asymmetric((0.08, 1.0)),
    "simclr": _alike(ViewRecipe(scale=(0.08, 1.0), jitter=STRONG)),
    "swav": _alike(ViewRecipe(scale=(0.14, 1.0), jitter=STRONG)),
    "dino": Recipe(_asymmetric((0.4, 1.0)).full, ViewRecipe(scale=(0.05, 0.4), jitter=WEAK)),
    "stablerep": _alike(ViewRecipe(scale=(0.08, 1.0), coarse=0.05)),
    "small": _alike(ViewRecipe(blur=0.0)),
    "digits": _alike(ViewRecipe(scale=(0.5, 1.0), flip=0.0, grey=0.0, blur=0.0)),
    "crops": _alike(ViewRecipe(jitter_share=0.0, grey=0.0, blur=0.0)),
}
