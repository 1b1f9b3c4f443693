"""The command line: verbs, an experiment file, --out and --set. Only this room prints or exits."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.markup import escape

from genview.cli.examine import check_examination, do_examine
from genview.cli.export import export
from genview.cli.options import NO_SETS, Address, File, Launching, Out, Set, Workers, chosen
from genview.cli.screen import FOLLOWS, TOGETHER, Bars, screen, show, show_scores
from genview.cli.study import check_study, do_study
from genview.errors import UserError, writing

if TYPE_CHECKING:
    from genview.experiment import Experiment, Fitting

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Generated views for self-supervised learning. Stages take an experiment file, --out and --set.",
)
app.command("export")(export)
STOPPED = 130
"""The exit code that Typer makes of Ctrl-C."""


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

    if launcher == "index" and not TOGETHER:
        raise UserError(
            "Processes that train together are started by torchrun. In a SLURM array give --launcher index to "
            "`genview analyse` and `genview generate`, and run this afterwards; it takes up what they have made."
        )
    experiment = _load(file, sets)
    with Bars() as bars:
        folder = run_all(experiment, out, chosen(launcher, workers, address), bars.tell)
    if not FOLLOWS:
        show(folder, experiment)


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
        analyse_images(stages, chosen(launcher, workers, address), bars.tell)


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
        generate_views(stages, chosen(launcher, workers, address), bars.tell)


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
    """Judge the last and the best backbone of a run by its evaluations, or one that was pretrained elsewhere.

    FILE is an experiment, or one with a backbone of yours or of timm's like experiments/evaluate-resnet50.yaml.
    """
    from genview.experiment import verb_of
    from genview.store import RunFolder

    if verb_of(file) == "evaluate":
        do_examine(file, out, sets)
    else:
        _stage("evaluate", file, out, sets)
    if not show_scores(RunFolder(out)):
        _say("Nothing was judged: the images have no labels, or the experiment has evaluation: [].")


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Run folders.", show_default=False, metavar="RUN")],
    out: Annotated[
        Path | None,
        typer.Option(help="The page: report.html in the folder of a single run, else comparison.html here."),
    ] = None,
) -> None:
    """Write the page of a run, finished or not, or one that compares several."""
    from genview.experiment import report_runs

    with Bars() as bars:
        page = report_runs(runs, out, bars.tell, _say)
    _say(f"Page: {page}")


@app.command("fit-generator")
def fit_generator(file: File, out: Out, sets: Set = NO_SETS) -> None:
    """Train an image encoder and an image-conditioned generator on images without labels.

    FILE is a folder of images, whose number then decides how long to train, or an experiment like
    experiments/fit-natural.yaml; or like experiments/lora-unclip.yaml, to teach a Stable unCLIP these images.
    What it will cost is told before it begins.
    """
    from genview.experiment import fit_generator as fit

    with Bars() as bars:
        experiment = _load_fit(file, sets, out, bars.tell)
        setting = fit(experiment, out, bars.tell, _say)
    _say(f"Finished. Use it with --set {setting}")
    _say(f"Page: {out / 'report.html'}")


@app.command()
def study(
    file: File,
    out: Annotated[Path, typer.Option(help="The folder of the study.", show_default=False)],
    table: Annotated[bool, typer.Option("--table", help="Only write the table of what is there.")] = False,
    sets: Set = NO_SETS,
    launcher: Launching = "auto",
    workers: Workers = 0,
    address: Address = "",
) -> None:
    """Run a grid of experiments that share analysis and views, and compare their scores in one table.

    FILE is a study like experiments/study-cifar10.yaml; --set takes paths in it, as in experiment.images.root=PHOTOS.
    """
    do_study(file, out, sets, None if table else chosen(launcher, workers, address))


@app.command()
def check(file: File, sets: Set = NO_SETS) -> None:
    """Print the whole resolved experiment and what it will cost; FILE is whatever run, study, evaluate or
    fit-generator take.
    """
    from genview.experiment import Stages, cost, planned, to_yaml, verb_of
    from genview.store import RunFolder

    verb = "fit-generator" if file.is_dir() else verb_of(file)
    if verb == "fit-generator":
        with TemporaryDirectory() as nowhere:
            fitting = _load_fit(file, sets, Path(nowhere))
            typer.echo(to_yaml(fitting))
            for line in planned(fitting, Path(nowhere)):
                typer.echo(line)
        return
    if verb == "study":
        check_study(file, sets)
        return
    if verb == "evaluate":
        check_examination(file, sets)
        return
    experiment = _load(file, sets)
    typer.echo(to_yaml(experiment))
    for line in cost(experiment, Stages(experiment, RunFolder(Path()))):
        typer.echo(line)


@app.command()
def watch(
    out: Out,
    once: Annotated[bool, typer.Option("--once", help="Show it once and stop.")] = False,
) -> None:
    """Show how a training in a run folder, or the runs of a study, fare, from another terminal."""
    from genview.cli.watch import do_watch

    do_watch(out, once)


def _load(file: Path, sets: list[str]) -> Experiment:
    from genview.experiment import Experiment, load, verb_of

    if (verb := verb_of(file)) != "run":
        raise UserError(f"{file} is no experiment but a file for `genview {verb}`.")
    return load(Experiment, file, sets)


def _load_fit(file: Path, sets: list[str], out: Path, tell: Callable[..., None] = lambda *_: None) -> Fitting:
    from genview.experiment import FitExperiment, LoraExperiment, for_folder, load, read_yaml, verb_of

    if not file.is_dir():
        if (verb := verb_of(file)) != "fit-generator":
            raise UserError(f"{file} says nothing of how to fit a generator; it is a file for `genview {verb}`.")
        lora = "lora" in read_yaml(file)
        return load(LoraExperiment, file, sets) if lora else load(FitExperiment, file, sets)
    experiment, chosen = for_folder(file, out, sets, tell)
    _say(
        "Chosen by the number of images, to be changed with --set: "
        + ", ".join(f"{k}={v}" for k, v in chosen.items())
    )
    return experiment


def _say(text: str) -> None:
    if not FOLLOWS:
        screen.print(text, markup=False, highlight=False, soft_wrap=True)


def _stage(name: str, file: Path, out: Path, sets: list[str]) -> None:
    from genview.experiment import Stages

    experiment = _load(file, sets)
    with Bars() as bars:
        work: Callable[[Callable[..., None]], object] = getattr(Stages.open(experiment, out, bars.tell), name)
        work(bars.tell)


def main() -> None:
    """Run the command line; faults of the user's are one paragraph and exit code 2."""
    try:
        with writing(Path("the run folder")):
            app()
    except UserError as error:
        screen.print(f"[bold red]genview:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except SystemExit as end:
        if end.code == STOPPED:
            screen.print("\nStopped. Run the same command again to continue.")
        raise
