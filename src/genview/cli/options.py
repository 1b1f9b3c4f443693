"""Options that several verbs have."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from genview.cli.screen import TOGETHER

if TYPE_CHECKING:
    from genview.launch import Launcher

File = Annotated[Path, typer.Argument(help="An experiment: a YAML file.", show_default=False)]
Out = Annotated[
    Path, typer.Option(help="The run folder. A run that was interrupted continues in it.", show_default=False)
]
Set = Annotated[list[str], typer.Option("--set", help="Override: path=value, as in --set images.root=PHOTOS.")]
NO_SETS: list[str] = []
Launching = Annotated[
    Literal["auto", "here", "local", "index", "ray"],
    typer.Option(
        help="Who analyses and generates: this process, processes of this machine (one for each GPU), the processes "
        "that SLURM or torchrun started, or Ray. auto: index under torchrun, local with several GPUs, else here."
    ),
]
Workers = Annotated[int, typer.Option(help="Processes of --launcher local; 0 is one for each GPU, or core.")]
Address = Annotated[str, typer.Option(help="Cluster of --launcher ray; without it, Ray runs on this machine.")]


def chosen(name: str, workers: int, address: str) -> Launcher:
    """Return the launcher that the options ask for.

    Raises:
        UserError: processes are to be told apart by an index, and nothing gives them one.
    """
    import torch

    from genview.launch import Here, Indexed, Local, Ray

    if name == "auto":
        several = workers > 1 or torch.cuda.device_count() > 1
        name = "index" if TOGETHER else "local" if several else "ray" if address else "here"
    if name == "index":
        return Indexed.from_environment()
    launchers: dict[str, Launcher] = {"here": Here(), "local": Local(workers), "ray": Ray(address)}
    return launchers[name]
