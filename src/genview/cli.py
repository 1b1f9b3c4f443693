"""The command line: verbs, an experiment file, --out and --set. Only this module prints or exits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Literal, Self

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from genview.errors import UserError, writing

if TYPE_CHECKING:
    from genview.experiment import Experiment
    from genview.launch import Launcher
    from genview.store import RunFolder

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Generated views for self-supervised learning. Every verb takes an experiment file, --out and --set.",
)
screen = Console(stderr=True)

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
        "that SLURM or torchrun started, or Ray. auto: local where there are several GPUs, else here."
    ),
]
Workers = Annotated[int, typer.Option(help="Processes of --launcher local; 0 is one for each GPU, or core.")]
Address = Annotated[str, typer.Option(help="Cluster of --launcher ray; without it, Ray runs on this machine.")]


@app.command()
def run(
    file: File,
    out: Out,
    sets: Set = NO_SETS,
    launcher: Launching = "auto",
    workers: Workers = 0,
    address: Address = "",
) -> None:
    """Do every stage in order, continuing where it stopped, and show the results."""
    from genview.experiment import run_all

    if launcher == "index":
        raise UserError(
            "--launcher index is for processes that SLURM or torchrun started: give it to `genview analyse` and "
            "`genview generate`, and run this in one process afterwards; it takes up what they have made."
        )
    experiment = _load(file, sets)
    with Bars() as bars:
        folder = run_all(experiment, out, _launcher(launcher, workers, address), bars.tell)
    _show(folder, experiment)


@app.command()
def analyse(
    file: File,
    out: Out,
    sets: Set = NO_SETS,
    launcher: Launching = "auto",
    workers: Workers = 0,
    address: Address = "",
) -> None:
    """Measure the foreground of every image and store the generator's condition."""
    from genview.experiment import Stages, analyse_images

    experiment = _load(file, sets)
    with Bars() as bars:
        stages = Stages.open(experiment, out, bars.tell)
        analyse_images(stages, _launcher(launcher, workers, address), bars.tell)


@app.command()
def generate(
    file: File,
    out: Out,
    sets: Set = NO_SETS,
    launcher: Launching = "auto",
    workers: Workers = 0,
    address: Address = "",
) -> None:
    """Make the views of every analysed image."""
    from genview.experiment import Stages, generate_views

    experiment = _load(file, sets)
    with Bars() as bars:
        stages = Stages.open(experiment, out, bars.tell)
        generate_views(stages, _launcher(launcher, workers, address), bars.tell)


@app.command("import")
def import_(
    file: File,
    out: Out,
    place: Annotated[Path, typer.Option("--from", help="A folder of views, or of tar and zip files that hold them.")],
    layout: Annotated[
        Literal["mirrored", "flat", "mapping"],
        typer.Option(help="Views lie under the paths of their images, or under their bare names, or a CSV tells."),
    ] = "mirrored",
    mapping: Annotated[
        Path | None, typer.Option(help="The CSV of --layout mapping: file,key and perhaps draw,level.")
    ] = None,
    sets: Set = NO_SETS,
) -> None:
    """Take views that exist already into the run, in the place of generated ones."""
    from genview.experiment import Stages, take_views
    from genview.generators import ImportSettings

    experiment = _load(file, sets)
    settings = ImportSettings(layout, mapping, experiment.generate.shard)
    with Bars() as bars:
        stages = Stages.open(experiment, out, bars.tell)
        account = take_views(stages, place, settings, bars.tell)
    screen.print(str(account), highlight=False, soft_wrap=True)


@app.command()
def pretrain(file: File, out: Out, sets: Set = NO_SETS) -> None:
    """Train the backbone on pairs."""
    _stage("pretrain", file, out, sets)


@app.command()
def evaluate(file: File, out: Out, sets: Set = NO_SETS) -> None:
    """Score the frozen backbone with k-nearest-neighbour and a linear probe."""
    _stage("evaluate", file, out, sets)


@app.command()
def report(file: File, out: Out, sets: Set = NO_SETS) -> None:
    """Write the page of a run, finished or not."""
    _stage("report", file, out, sets)


@app.command("fit-generator")
def fit_generator(file: File, out: Out, sets: Set = NO_SETS) -> None:
    """Train an image encoder and an image-conditioned generator on images without labels.

    FILE is an experiment like experiments/fit-natural.yaml, or a folder of images.
    """
    from genview.experiment import FitExperiment, load, parse
    from genview.experiment import fit_generator as fit
    from genview.experiment.load import overridden

    if file.is_dir():
        content = overridden({"images": {"kind": "folder", "root": str(file)}}, sets)
        experiment = parse(FitExperiment, content, str(file))
    else:
        experiment = load(FitExperiment, file, sets)
    with Bars() as bars:
        folder = fit(experiment, out, bars.tell)
    screen.print(f"The generator is in {folder}. Use it with --set generator.weights={folder}", highlight=False)


@app.command()
def check(file: File, sets: Set = NO_SETS) -> None:
    """Print the whole resolved experiment and what it will cost."""
    from genview.experiment import Stages, cost, to_yaml
    from genview.store import RunFolder

    experiment = _load(file, sets)
    typer.echo(to_yaml(experiment))
    for line in cost(experiment, Stages(experiment, RunFolder(Path()))):
        typer.echo(line)


class Bars:
    """One progress bar for each thing that is being done, with the time left; a line every while without a screen."""

    def __init__(self) -> None:
        self._progress = Progress(
            TextColumn("{task.description:<14}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            console=screen,
            disable=not screen.is_terminal,
        )
        self._tasks: dict[str, TaskID] = {}
        self._begun: dict[str, tuple[float, int]] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def tell(self, what: str, done: int, total: int, note: str = "") -> None:
        """Show that `done` of `total` are done."""
        if not screen.is_terminal:
            self._say(what, done, total, note)
            return
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note=note)
        self._progress.update(self._tasks[what], completed=done, total=total, note=note)

    def _say(self, what: str, done: int, total: int, note: str) -> None:
        now = time.monotonic()
        start, first = self._begun.setdefault(what, (now, done))
        if done < total and now - self._said.get(what, 0.0) < 10:
            return
        self._said[what] = now
        left = (now - start) / (done - first) * (total - done) if done > first else float("nan")
        remaining = "" if left != left else f" · {left / 60:.1f} min left"
        screen.print(f"{what}: {done}/{total}{remaining} {note}", markup=False, highlight=False, soft_wrap=True)


def _load(file: Path, sets: list[str]) -> Experiment:
    from genview.experiment import Experiment, load

    return load(Experiment, file, sets)


def _launcher(name: str, workers: int, address: str) -> Launcher:
    import torch

    from genview.launch import Here, Indexed, Local, Ray

    if name == "auto":
        name = "local" if workers > 1 or torch.cuda.device_count() > 1 else "ray" if address else "here"
    if name == "index":
        return Indexed.from_environment()
    chosen: dict[str, Launcher] = {"here": Here(), "local": Local(workers), "ray": Ray(address)}
    return chosen[name]


def _stage(name: str, file: Path, out: Path, sets: list[str]) -> None:
    from genview.experiment import Stages

    experiment = _load(file, sets)
    with Bars() as bars:
        work: Callable[[Callable[..., None]], object] = getattr(Stages.open(experiment, out, bars.tell), name)
        work(bars.tell)


def _show(folder: RunFolder, experiment: Experiment) -> None:
    from rich.table import Table

    from genview.encoders.backbone import snippet
    from genview.report import results

    rows = results(folder)
    table = Table("measure", "this run")
    if any(row.baseline is not None for row in rows):
        table = Table("measure", "with views", "same budget without", "difference")
    for row in rows:
        cells = [row.name, f"{row.value:.1%}"]
        if row.baseline is not None:
            cells += [f"{row.baseline:.1%}", f"{100 * (row.value - row.baseline):+.1f}"]
        table.add_row(*cells)
    out = Console(highlight=False)
    if rows:
        out.print(table)
    out.print(f"Use the backbone:\n{escape(snippet(experiment.training.backbone, folder.backbone))}", soft_wrap=True)
    if aside := folder.quarantined():
        out.print(f"{aside} images could not be used and were left out: {folder.quarantine_file}", soft_wrap=True)
    out.print(f"Page: {folder.page}", soft_wrap=True)


def main() -> None:
    """Run the command line; faults of the user's are one paragraph and exit code 2."""
    try:
        with writing(Path("the run folder")):
            app()
    except UserError as error:
        screen.print(f"[bold red]genview:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        screen.print("\nStopped. Run the same command again to continue.")
        sys.exit(130)
