"""The sections of the page: each says how to read it, and what would make it where its data are missing."""

from __future__ import annotations

import html

import numpy as np

from genview.images.source import ImageSource, Tell, silent
from genview.report import figures, gallery
from genview.report.browser import browser
from genview.report.by_level import quality_by_level
from genview.report.collect import Material, Result, series
from genview.report.confusion import confusion
from genview.report.pairs import gather
from genview.report.section import Section, chart, missing
from genview.report.space import space
from genview.report.words import flat, label, left_out, level_name, percent, place_in_study, points, with_protocols

MOST_QUARANTINED = 50
MOST_BARS = 10


def sections_of(material: Material, source: ImageSource | None, tell: Tell = silent) -> list[Section]:
    """Return every section, in the order of the page; `tell` is told how many pictures are made."""
    return [
        scores(material),
        space(material.portrait),
        confusion(material.predictions),
        views(material, source, tell),
        foreground(material),
        pairs(material, source, tell),
        quality_by_level(material),
        histograms(material),
        curves(material),
        quarantine(material),
        experiment(material),
    ]


def scores(material: Material) -> Section:
    """Final scores beside those of the best backbone, and of the same budget without views and weights."""
    found = material.results
    reading = (
        "What the last backbone of the training scores on test images, and by which protocol. Best is the one with "
        "the highest online kNN on held-out training images. One seed each: a small difference may be chance."
    )
    if not found:
        return Section("results", "Results", reading, missing("evaluate", " (it needs labelled images)"))
    compared = any(result.baseline is not None for result in found)
    best = any(result.best is not None for result in found)
    heads = ["measure", f"with {material.treatment}" if compared and material.treatment else "this run"]
    heads += (["best"] if best else []) + (["same budget without", "difference, points"] if compared else [])
    head = "".join(f'<th scope="col">{text}</th>' for text in [*heads, "protocol"])
    rows = "".join(_score_row(result, compared, best) for result in found)
    body = f'<div class="scroll" tabindex="0"><table class="scores"><thead><tr>{head}</tr></thead>'
    body += f"<tbody>{rows}</tbody></table></div>"
    if not compared:
        body += f'<p class="note">{_not_compared(material)}</p>'
    return Section("results", "Results", reading, body)


def _not_compared(material: Material) -> str:
    if place_in_study(material.run.root):
        return "The page of the study compares this run with those of other variants."
    return (
        "No baseline to compare with: <code>--set baseline=true</code> spends the same budget once more without "
        "generated views and weights."
    )


def _score_row(result: Result, compared: bool, best: bool) -> str:
    words = label(result.name)
    name = html.escape(words if words.startswith("kNN") else words[:1].upper() + words[1:])
    cells = f'<th scope="row">{name}<br><code>{html.escape(result.name)}</code></th>'
    cells += f'<td class="own">{percent(result.value)}</td>'
    if best:
        cells += f"<td>{'–' if result.best is None else percent(result.best)}</td>"
    if result.baseline is not None and result.difference is not None:
        kind = "up" if result.difference > 0 else "down" if result.difference < 0 else "even"
        cells += f'<td>{percent(result.baseline)}</td><td class="{kind}">{points(result.difference)}</td>'
    elif compared:
        cells += "<td>–</td><td>–</td>"
    return f"<tr>{cells}<td>{html.escape(result.protocol)}</td></tr>"


def views(material: Material, source: ImageSource | None, tell: Tell) -> Section:
    """Originals beside their generated views, one row for each level."""
    reading = (
        "Left the original (its centre square), right its generated view. Higher levels should stray "
        "further; a good view shows the same thing in another way. Similarity is the cosine of the two "
        "in the encoder's space; where it was computed, each level shows its lowest, its median and its highest. "
        "Draws of one image should lie apart: their distance is one minus their cosine."
    )
    if material.views is None:
        body = missing("generate", "; an experiment with <code>generator: null</code> has none")
        return Section("views", "Originals beside views", reading, body)
    body = "".join(gallery.by_level(material, source, tell))
    notes = [left_out(material.left_out)]
    if len(material.views["key"]) < material.generated:
        notes.append(f"Chosen from {_sample(len(material.views['key']), material.generated)} views.")
    body += "".join(f'<p class="note">{note}</p>' for note in notes if note)
    return Section("views", "Originals beside views", reading, body)


def foreground(material: Material) -> Section:
    """Score maps and masks of example images, and what the analysis found."""
    reading = (
        "Each image, how far its patches lie from the threshold, and what counts as foreground. Orange "
        "should cover the thing that the image is of; the more of it, the higher the level."
    )
    body = missing("analyse")
    if material.maps is not None and len(material.maps["keys"]):
        ramp = '<p class="keyline"><span>background<span class="ramp"></span>foreground</span></p>'
        body = ramp + gallery.foreground(material.maps)
    rows = "".join(
        f"<div><dt>{html.escape(name)}</dt><dd>{html.escape(text)}</dd></div>"
        for name, text in flat(material.summary or {})
    )
    body += f'<dl class="details">{rows}</dl>' if rows else ""
    return Section("foreground", "Foreground maps", reading, body)


def pairs(material: Material, source: ImageSource | None, tell: Tell) -> Section:
    """Training pairs, to be filtered and sorted."""
    if material.latest is None or not len(material.latest["key"]):
        return browser(None)
    return browser(gather(material.run, material.pictured, material.latest, source, tell))


def histograms(material: Material) -> Section:
    """How foreground ratio, noise level and weight are spread."""
    reading = (
        "How many images, views or pairs have each value. Ratios should be spread out, so that several "
        "levels are used. Weights lie around 1: the wider, the more the quality of pairs differs."
    )
    drawn = (_ratios(material), _levels(material), _weights(material))
    return Section("histograms", "Histograms", reading, f'<div class="charts">{"".join(drawn)}</div>')


def _ratios(material: Material) -> str:
    title, ratio = "Foreground ratio", material.ratios
    if ratio is None or not len(ratio):
        return chart(title, "", missing("analyse"))
    text = f"{_sample(len(ratio), material.analysed)} images, {ratio.mean():.2f} on average"
    return chart(title, text, figures.histogram(ratio, (0.0, 1.0), "ratio", f"Histogram of foreground ratio: {text}"))


def _levels(material: Material) -> str:
    title = "Noise level"
    if material.views is None:
        return chart(title, "", missing("generate"))
    levels, counts = np.unique(material.views["level"], return_counts=True)
    text = f"{_sample(int(counts.sum()), material.generated)} views"
    if len(levels) > MOST_BARS:
        span = (float(levels[0]), float(levels[-1]))
        said = f"Histogram of levels from {levels[0]} to {levels[-1]}: {text}"
        return chart(title, text, figures.histogram(material.views["level"], span, "level", said))
    names = [level_name(level) for level in levels.tolist()]
    said = ", ".join(f"{count} at {name}" for name, count in zip(names, counts, strict=True))
    bars = [name.removeprefix("level ").removesuffix(" level") for name in names]
    drawing = figures.bars(bars, counts.tolist(), "level", f"Views by level: {said}")
    return chart(title, text, drawing)


def _weights(material: Material) -> str:
    title, seen = "Pair weight", material.weighed
    if seen is None:
        return chart(title, "", missing("pretrain", " when the experiment has <code>quality</code>"))
    weights = seen["weight"][np.isfinite(seen["weight"])].astype(float)
    text = f"{len(weights):,} pairs seen in training; the line marks 1, the mean of a batch"
    span = (min(0.9, float(weights.min(initial=0.9))), max(1.1, float(weights.max(initial=1.1))))
    return chart(title, text, figures.histogram(weights, span, "weight", f"Histogram of weights: {text}", mark=1.0))


def _sample(shown: int, all_of_them: int) -> str:
    return f"{shown:,}" if shown >= all_of_them else f"an even sample of {shown:,} among {all_of_them:,}"


def curves(material: Material) -> Section:
    """Loss, online kNN and the collapse monitor over the steps, with the baseline's dashed."""
    reading = (
        "Loss should fall and kNN rise. The collapse monitor should stay well above 0: at 0 all images have "
        "the same features. Losses with and without weights are not on one scale; compare kNN."
    )
    if not series(material.measures, "train/").steps.size:
        return Section("curves", "Curves", reading, missing("pretrain"))
    own = material.treatment or "this run"
    legend = f'<span><span class="swatch"></span> {own}</span>'
    if material.plain_measures:
        legend += '<span><span class="swatch plain"></span> same budget without</span>'
    drawn = (
        _curve(material, "train/loss", "Training loss", "mean of weighted losses of pairs"),
        _curve(material, "online/knn/", "kNN during training", "on held-out training images", share=True),
        _curve(material, "train/feature_std", "Collapse monitor", "spread of features: 1 is even, 0 collapsed"),
    )
    body = f'<p class="keyline">{legend}</p><div class="charts">{"".join(drawn)}</div>'
    return Section("curves", "Curves", reading, body)


def _curve(material: Material, prefix: str, title: str, text: str, *, share: bool = False) -> str:
    own, plain = series(material.measures, prefix), series(material.plain_measures, prefix)
    if not own.steps.size:
        return chart(title, text, missing("pretrain", " (kNN needs labelled images)" if share else ""))
    said = f"{title}, from {own.values[0]:.3g} at step {own.steps[0]:.0f}"
    said += f" to {own.values[-1]:.3g} at {own.steps[-1]:.0f}"
    if plain.steps.size:
        said += f"; without views and weights {plain.values[-1]:.3g} at {plain.steps[-1]:.0f}"
    return chart(title, with_protocols(text, (own, plain)), figures.curves(own, plain, prefix, said, percent=share))


def quarantine(material: Material) -> Section:
    """Images that could not be used."""
    return quarantine_of(material.quarantined)


def quarantine_of(found: list[tuple[str, str]]) -> Section:
    """Images that could not be used, as (key, reason)."""
    title = "Images set aside"
    reading = "Files that could not be read as images, and why. They were skipped; nothing else was lost."
    if not found:
        return Section("quarantine", title, reading, "<p>None so far.</p>")
    rows = "".join(
        f'<tr><td class="key">{html.escape(key)}</td><td>{html.escape(reason)}</td></tr>'
        for key, reason in found[:MOST_QUARANTINED]
    )
    count = f"<p>{len(found):,} images" if len(found) > 1 else "<p>1 image"
    count += f", of which the first {MOST_QUARANTINED}:</p>" if len(found) > MOST_QUARANTINED else ":</p>"
    head = '<thead><tr><th scope="col">image</th><th scope="col">reason</th></tr></thead>'
    return Section("quarantine", title, reading, f"{count}<table>{head}<tbody>{rows}</tbody></table>")


def experiment(material: Material) -> Section:
    """The resolved experiment."""
    reading = "Every setting of this run, defaults too. Saved to a file, it makes the same run again."
    text = material.experiment
    body = missing("run") if text is None else f'<pre tabindex="0">{html.escape(text)}</pre>'
    return Section("experiment", "Experiment", reading, body)
