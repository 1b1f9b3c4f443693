"""The verb `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from genview.cli.screen import screen

To = Annotated[
    Literal["timm", "torchvision", "huggingface", "onnx"], typer.Option("--to", help="Whose layout to write.")
]
Place = Annotated[
    Path,
    typer.Argument(metavar="FROM", help="A run folder, a folder that was exported, or a checkpoint of others."),
]
Layout = Literal[
    "moco_v2", "moco_v3", "dino", "lightly", "solo_learn", "mmpretrain", "timm", "torchvision", "transformers"
]
NO_ARGS: list[str] = []


def export(  # noqa: PLR0913  # as many as there are things that a file does not tell
    place: Place,
    to: To,
    out: Annotated[Path, typer.Option(help="A new folder.", show_default=False)],
    size: Annotated[
        int | None, typer.Option(help="Side of its images in pixels; by default the run's, or 224.")
    ] = None,
    data: Annotated[str | None, typer.Option(help="What the card calls the images it was trained on.")] = None,
    layout: Annotated[Layout | None, typer.Option(help="Whose checkpoint it is, where that is not seen.")] = None,
    prefix: Annotated[str | None, typer.Option(help="What the names of the network's weights begin with.")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="The network in timm's name, where shapes do not tell.")
    ] = None,
    arg: Annotated[list[str], typer.Option("--arg", help="An argument of that network: name=value.")] = NO_ARGS,
    stem_stride: Annotated[
        Literal["1", "2", "4"] | None, typer.Option(help="Of a ResNet: 4 is ImageNet's stem, 1 that for 32 px.")
    ] = None,
    statistics: Annotated[
        Literal["imagenet", "clip", "half", "none"] | None,
        typer.Option(help="Mean and deviation that images are normalised with."),
    ] = None,
) -> None:
    """Write a backbone for timm, torchvision, transformers or ONNX, with a model card; or take over one of others.

    What is written is read back, and its features are compared, before the folder appears. Options from --layout on
    help to read a checkpoint of others (mmpretrain, MoCo, DINO, lightly, solo-learn, torchvision, transformers).
    """
    from genview.encoders.foreign import STATISTICS, Hints
    from genview.experiment import Wish, arguments, export_backbone

    strides: dict[str | None, Literal[1, 2, 4] | None] = {None: None, "1": 1, "2": 2, "4": 4}
    hints = Hints(layout, prefix, backbone, arguments(arg), strides[stem_stride], STATISTICS.get(statistics or ""))
    export_backbone(
        Wish(place, to, out, hints, size, data),
        lambda line: screen.print(line, markup=False, highlight=False, soft_wrap=True),
    )
