"""The whole experiment as one value. Each key is the dataclass of one room, in the order the data flows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, get_args

from pydantic import BeforeValidator, Field

from genview.errors import nearest
from genview.evaluation import Evaluation, Knn, Linear
from genview.foreground import AnalyseSettings
from genview.generators import GeneratorSettings
from genview.generators.settings import GenerateSettings
from genview.images import ImageSettings
from genview.methods import Method, MoCoV2
from genview.noise import Adaptive, NoisePolicy
from genview.pairs import ExternalViews, PairSettings, SameClassViews
from genview.quality import QualitySettings, with_kind
from genview.training import TrainSettings

FITTING = ("workers", "device", "devices", "log", "save_every", "measure_every", "sample_every")
INDIFFERENT = {
    "foreground": ("workers", "batch"),
    "training": ("workers", "device", "devices", "hold", "log", "save_every", "measure_every", "probe_every"),
    "fit": FITTING,
    "distil": FITTING,
    "lora": FITTING,
}
"""Settings that may change between the starts of one run, as no result depends on them."""


def with_preset(content: Any) -> Any:
    """Replace `preset: NAME` of a generator by the options it stands for; those given beside it win."""
    if not isinstance(content, dict) or "preset" not in content:
        return content
    given = {name: value for name, value in content.items() if name != "preset"}
    known = {kind.kind: kind.presets for kind in get_args(GeneratorSettings)}
    presets = known.get(given.get("kind", ""), {})
    if presets and content["preset"] not in presets:
        near = nearest(str(content["preset"]), presets)
        raise ValueError(f"there is no preset '{content['preset']}' but {', '.join(presets)}.{near}")
    return {**presets.get(content["preset"], {}), **given}


@dataclass(frozen=True)
class Experiment:
    """Everything a run depends on.

    A generator's `preset` (paper, balanced, fast, draft) stands for options, and those given beside it win.
    `generator: null` gives pairs of the originals alone and `quality: null` equal weights: the paper's
    baselines. `baseline: true` trains that baseline too, with the same budget, and shows both side by side.
    `views` takes other images instead of generated ones, to compare with: of another collection, as the paper does,
    or of the same class.
    `test` holds labelled images to evaluate on; where it is absent, a fifth of `images` is held out for that.
    `validation` holds a part of labelled `images` out of the training, to choose the backbone that is kept beside the
    last one: a share of each class below 1, or a number of images. Test images are never used for a choice.
    """

    images: Annotated[ImageSettings, Field(discriminator="kind")]
    test: Annotated[ImageSettings, Field(discriminator="kind")] | None = None
    generator: Annotated[
        Annotated[GeneratorSettings, Field(discriminator="kind")] | None, BeforeValidator(with_preset)
    ] = None
    foreground: AnalyseSettings = field(default_factory=AnalyseSettings)
    noise: Annotated[NoisePolicy, Field(discriminator="kind")] = field(default_factory=Adaptive)
    generate: GenerateSettings = field(default_factory=GenerateSettings)
    views: Annotated[ExternalViews | SameClassViews, Field(discriminator="kind")] | None = None
    pairs: PairSettings = field(default_factory=PairSettings)
    quality: Annotated[Annotated[QualitySettings, Field(discriminator="kind")] | None, BeforeValidator(with_kind)] = (
        None
    )
    method: Annotated[Method, Field(discriminator="kind")] = field(default_factory=MoCoV2)
    training: TrainSettings = field(default_factory=TrainSettings)
    evaluation: tuple[Annotated[Evaluation, Field(discriminator="kind")], ...] = (Knn(), Linear())
    validation: float = 0.1
    baseline: bool = False
    seed: int = 0


def essential(resolved: dict[str, Any]) -> dict[str, Any]:
    """Return the part of a resolved experiment on which its backbones depend."""
    return {
        name: {k: v for k, v in value.items() if k not in INDIFFERENT.get(name, ())}
        if isinstance(value, dict)
        else value
        for name, value in resolved.items()
        if name != "evaluation"  # each result is kept under its own settings
    }
