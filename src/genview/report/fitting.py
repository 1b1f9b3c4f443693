"""The page of a generator's training: what it draws of images that were held out, and how its loss falls."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

import numpy as np
from PIL import Image

from genview.generators.lora import USUAL
from genview.report import figures
from genview.report.collect import Columns, arrays, quarantined, series, spread
from genview.report.page import write_framed
from genview.report.section import Section, chart, missing
from genview.report.sections import quarantine_of
from genview.report.words import span
from genview.store import Measure, RunFolder

MOST_SHEETS = 6
GAP = 2
VERB = "fit-generator"
RESULTS = {"model_index.json": "generator.weights", USUAL: "generator.lora"}
"""The last file that a training writes, and the setting that uses its result."""
NAMES = {
    "rmse": ("RMSE to the source", "root mean square difference of pixels in [0, 1]"),
    "apart": ("RMSE between two draws", "what noise alone changes; 0 is a generator that cannot vary"),
    "similarity": ("Similarity", "cosine of view and source in the frozen encoder"),
}


def write_fit_page(run: RunFolder, out: Path | None = None) -> Path:
    """Write a page from what a generator's training has left, finished or not, to `out`, `run.page` where None.

    Raises:
        UserError: a file of the run is damaged, or the disk is full.
    """
    measures = run.measures()
    sections = [
        samples(run),
        scores(measures),
        curves(measures),
        quarantine_of(quarantined(run)),
        settings(run),
    ]
    return write_framed(run, _lead(run, measures), _facts(run, measures), sections, out, VERB)


def _lead(run: RunFolder, measures: list[Measure]) -> str:
    if setting := setting_of(run):
        return f"The generator is finished: use it with <code>--set {html.escape(setting)}</code>."
    left = [m.value for m in measures if m.name == "fit/seconds_left"]
    if left:
        return f"The generator is being trained; {span(left[-1])} were left when this was written."
    return "The encoder comes first; the generator's training has not begun."


def setting_of(run: RunFolder) -> str | None:
    """Return the setting that uses the generator or the LoRA of a run; None while it is not finished."""
    return next((f"{option}={run.root}" for file, option in RESULTS.items() if (run.root / file).exists()), None)


def _facts(run: RunFolder, measures: list[Measure]) -> list[tuple[str, str]]:
    found = {m.name: m.value for m in measures}  # the last of each
    speed = [m.value for m in measures if m.name == "fit/images_per_second"]
    return [
        ("training steps", f"{max((m.step for m in measures if m.name == 'fit/loss'), default=0):,}"),
        ("loss", f"{found['fit/loss']:.4f}" if "fit/loss" in found else "–"),
        ("images a second", f"{np.median(speed):,.0f}" if speed else "–"),
        ("images set aside", f"{run.quarantined():,}"),
    ]


def samples(run: RunFolder) -> Section:
    """Sheets of sources and views, of at most `MOST_SHEETS` steps from the first to the last."""
    title = "Views of held-out images"
    files = spread(sorted(run.samples.glob("step-*.npz")), MOST_SHEETS)
    reading = (
        "The generator has never been trained on these images. Rows: the image, then a view at each level. "
        "Views should grow sharper with the steps, keep their image at level 0, and stray further at higher levels."
    )
    rows = []
    for file in reversed(files):
        found = arrays(file)
        assert found is not None
        step = int(file.stem.removeprefix("step-"))
        levels = ", ".join(str(level) for level in found["levels"])
        picture = sheet_image(found, f"Held-out images and their views at levels {levels} after {step} steps")
        rows.append(f'<div class="level"><div><h3>Step {step:,}</h3><p>levels {levels}</p></div>{picture}</div>')
    return Section("samples", title, reading, "".join(rows) or missing(VERB))


def sheet_image(found: Columns, alt: str) -> str:
    """Return an img element with the images N×S×S×3 above their views L×N×S×S×3."""
    pixels = sheet(np.concatenate([found["images"][None], found["views"]]))
    small = found["images"].shape[1] < 64
    buffer, kind = io.BytesIO(), "png" if small else "jpeg"
    Image.fromarray(pixels).save(buffer, kind, quality=85, optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    style = "sheet small" if small else "sheet"
    return f'<img class="{style}" src="data:image/{kind};base64,{data}" alt="{html.escape(alt)}" loading="lazy">'


def sheet(images: np.ndarray) -> np.ndarray:
    """Lay images R×N×S×S×3 out in R rows of N, `GAP` white pixels between them."""
    rows, count, size = images.shape[:3]
    step = size + GAP
    whole = np.full((rows * step - GAP, count * step - GAP, 3), 255, np.uint8)
    for r, c in np.ndindex(rows, count):
        whole[r * step : r * step + size, c * step : c * step + size] = images[r, c]
    return whole


def scores(measures: list[Measure]) -> Section:
    """The latest scores of each level, and their course."""
    title = "Scores of held-out images"
    reading = (
        "Quick signs, not quality: at level 0 views should be near their source and alike; the higher the level, the "
        "further from it and from one another. <code>benchmarks/view_quality.py</code> measures what counts."
    )
    latest = {m.name.removeprefix("online/"): m.value for m in measures if m.name.startswith("online/")}
    levels = sorted({int(name.partition("=")[2]) for name in latest if "@level=" in name})
    if not levels:
        return Section("scores", title, reading, missing(VERB))
    heads = "".join(f'<th scope="col">{words}</th>' for words, _ in NAMES.values())
    rows = "".join(
        f'<tr><th scope="row">level {level}</th>'
        + "".join(f"<td>{latest.get(f'{name}@level={level}', float('nan')):.3f}</td>" for name in NAMES)
        + "</tr>"
        for level in levels
    )
    table = f'<table class="scores"><thead><tr><th scope="col">level</th>{heads}</tr></thead>'
    table = f'<div class="scroll" tabindex="0">{table}<tbody>{rows}</tbody></table></div>'
    level = levels[len(levels) // 2]
    drawn = [
        _curve(measures, f"online/{name}@level={level}", f"{words} at level {level}", more)
        for name, (words, more) in NAMES.items()
    ]
    return Section("scores", title, reading, f'{table}<div class="charts">{"".join(drawn)}</div>')


def curves(measures: list[Measure]) -> Section:
    """Loss and speed over the steps."""
    reading = (
        "The loss is an error of pixels weighted by how much is known at each step of the noise: it levels off early."
    )
    drawn = (
        _curve(measures, "fit/loss", "Loss", "mean over the steps in between"),
        _curve(measures, "fit/images_per_second", "Images a second", "over all devices"),
        _curve(
            measures, "fit/waiting", "Waiting for data", "share of the time; more workers bring it down", share=True
        ),
    )
    return Section("curves", "Curves", reading, f'<div class="charts">{"".join(drawn)}</div>')


def _curve(measures: list[Measure], name: str, title: str, text: str, *, share: bool = False) -> str:
    own = series(measures, name)
    if not own.steps.size:
        return chart(title, text, missing(VERB))
    said = (
        f"{title}, from {own.values[0]:.3g} at step {own.steps[0]:.0f} to {own.values[-1]:.3g} at {own.steps[-1]:.0f}"
    )
    return chart(title, text, figures.curves(own, series([], name), name, said, percent=share))


def settings(run: RunFolder) -> Section:
    """The resolved experiment."""
    reading = "Every setting, defaults too. Saved to a file, it makes the same generator again."
    text = run.experiment.read_text() if run.experiment.exists() else None
    body = missing(VERB) if text is None else f'<pre tabindex="0">{html.escape(text)}</pre>'
    return Section("experiment", "Experiment", reading, body)
