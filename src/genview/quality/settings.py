"""How pairs are weighed, as an experiment says it: exactly, from a cache, or with hand-drawn masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from genview.errors import UserError
from genview.quality.weighting import Weighting


@dataclass(frozen=True)
class ExactQuality(Weighting):
    """The frozen encoder looks at every view of every step.

    `encoder` is 'generator' (the generator's own), a timm name such as convnext_base.clip_laion2b_augreg, or a
    folder. `direction` is an .npy file (the authors' or one's own); without it, it is fitted.
    """

    kind: Literal["exact"] = "exact"
    encoder: str = "generator"
    direction: Path | None = None


@dataclass(frozen=True)
class CachedQuality(Weighting):
    """The frozen encoder looks once at every picture, and views are read off what it saw.

    Pictures are shown to it at `size` pixels, twice its own where None. `components` numbers are kept of each
    token. What a crop's map cannot know (colours, blur, the crop's border) a small network adds that looks at the
    view itself; it is fitted on `correction` crops beforehand, and left out where that is 0.
    """

    kind: Literal["cached"] = "cached"
    encoder: str = "generator"
    direction: Path | None = None
    size: int | None = None
    components: int = 48
    correction: int = 4096

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.components < 2 or self.correction < 0 or (self.size or 1) < 1:
            raise UserError("quality.components is at least 2, quality.correction at least 0, quality.size positive.")


@dataclass(frozen=True)
class MaskQuality(Weighting):
    """As exact, but the foreground of originals is what PNG masks below the folder `masks` say.

    A mask lies where its image's key says, with .png for its extension, and has any size; what is not black is
    foreground. Images without a mask, and generated views, keep the encoder's own map.
    """

    masks: str = ""
    kind: Literal["masks"] = "masks"
    encoder: str = "generator"
    direction: Path | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.masks:
            raise UserError("quality.masks is needed with kind: masks: the folder of the PNG masks.")


QualitySettings = ExactQuality | CachedQuality | MaskQuality


def with_kind(content: Any) -> Any:
    """Add `kind: exact` to a mapping that names no kind; anything else stays as it is."""
    return {"kind": "exact", **content} if isinstance(content, dict) else content
