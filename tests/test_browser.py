"""The page of a run as its readers work with it, in a headless Chromium: it filters, sorts and shows neighbours."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from browser import Browser, fresh_browser
from genview.images.thumbnail import thumbnail
from genview.report import write_page
from genview.report.collect import collect
from genview.report.pairs import Gathered, gather
from genview.store import RunFolder, read_table, write_table
from genview.training.examples import EACH_SIDE, MOST_PAIRS, SAMPLED
from made_runs import COUNT, Digits, key, made_run, of_pairs

browser = pytest.fixture(scope="module")(fresh_browser)
ORDERS = "[...document.querySelector('#pairs-browser [name=order]').options].map(way => way.textContent)"
SHOWN = "[...document.querySelectorAll('.cards figcaption')]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with sixty pictured pairs and three hundred others at the levels −1, 0 and 300."""
    run = made_run(tmp_path_factory.mktemp("browser") / "run")
    chance = np.random.default_rng(0)
    files = read_table(run.pairs / "pictured.parquet", ["a", "b"])
    for name, count in (("pictured", 60), ("latest", 300)):
        place, weight = np.arange(count), chance.permutation(count).astype(np.float32) / count
        rows = of_pairs(place, np.where(place % 20 < 12, place % 2 - 1, 300), weight)
        rows["class"][::7] = ""  # of an image without a label
        sides = {side: np.tile(values, 3) for side, values in files.items()} if name == "pictured" else {}
        write_table(run.pairs / f"{name}.parquet", {**rows, **sides})
    write_page(run, Digits())
    return run


def gathered(run: RunFolder) -> Gathered:
    material = collect(run)
    assert material.latest is not None
    return gather(run, material.pictured, material.latest, Digits())


@pytest.fixture(scope="module")
def pairs(run: RunFolder) -> Gathered:
    return gathered(run)


@pytest.fixture
def page(browser: Browser, run: RunFolder) -> Browser:
    browser.open(run.page)
    return browser


def steps(page: Browser) -> list[int]:
    """Steps of the pairs whose pictures are shown; here each pictured pair has its own."""
    found: list[str] = page.js(f"{SHOWN}.map(words => words.textContent.match(/step ([0-9,]+)/)[1])")
    return [int(step.replace(",", "")) for step in found]


def enter(page: Browser, name: str, value: object) -> None:
    """Put a value into a control of the pairs as a reader does."""
    page.js(
        f"(() => {{ const control = document.querySelector('#pairs-browser {name}'); control.value = {value!r};"
        "control.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


def wanted(pairs: Gathered, fits: np.ndarray, by: str = "weight", *, falling: bool = True) -> list[int]:
    """Steps of the first pictured pairs that fit, in an order; what is not known comes last."""
    rows = np.flatnonzero(fits[: pairs.pictured])
    values = numbers(pairs.columns[by])[rows]
    order = np.argsort(np.where(np.isnan(values), np.inf, -values if falling else values), kind="stable")
    steps: list[int] = pairs.columns["step"][rows[order]].tolist()
    return steps[:24]


def numbers(values: np.ndarray) -> np.ndarray:
    """Numbers as they are; names by their place in the alphabet, NaN where there is none."""
    if values.dtype != object:
        return values.astype(float)
    places = np.unique(values, return_inverse=True)[1].astype(float)
    return np.where(values == "", np.nan, places)


def every(pairs: Gathered) -> np.ndarray:
    return np.ones(len(pairs.columns["key"]), bool)


def test_pairs_are_sorted_by_weight_at_first(page: Browser, pairs: Gathered) -> None:
    assert steps(page) == wanted(pairs, every(pairs))
    total = len(every(pairs))
    assert page.js("document.querySelector('.count').textContent") == (
        f"60 of 60 pictured pairs match, and {total} of {total} points."
    )


@pytest.mark.parametrize("by", ["score", "ratio", "loss", "level", "step", "class"])
def test_sorting_sorts(page: Browser, pairs: Gathered, by: str) -> None:
    """By numbers the highest come first, by class A: what is chosen is called so."""
    falling = by != "class"
    enter(page, "[name=sort]", by)
    assert steps(page) == wanted(pairs, every(pairs), by, falling=falling)
    assert page.js(ORDERS) == (["highest first", "lowest first"] if falling else ["A to Z", "Z to A"])
    enter(page, "[name=order]", "low")
    assert steps(page) == wanted(pairs, every(pairs), by, falling=not falling)


def test_the_keyboard_sorts_by_class(page: Browser, pairs: Gathered) -> None:
    page.js("document.querySelector('#pairs-browser [name=sort]').focus()")
    for _ in page.js("[...document.querySelector('[name=sort]').options]"):
        page.press("ArrowDown")
    assert page.js("document.activeElement.value") == "class"
    assert page.js("document.activeElement.labels[0].firstChild.textContent") == "Sort by"
    assert steps(page) == wanted(pairs, every(pairs), "class", falling=False)
    page.js("document.querySelector('#pairs-browser [type=reset]').click()")
    page.js("new Promise(done => setTimeout(done, 20))")
    assert page.js(ORDERS) == ["highest first", "lowest first"]


def test_filters_filter(page: Browser, pairs: Gathered) -> None:
    columns = pairs.columns
    fits = columns["level"] != 300
    page.js("document.querySelector('[name=level][value=\"300\"]').click()")
    assert steps(page) == wanted(pairs, fits)
    enter(page, "[name=class]", "1")
    fits &= columns["class"] == "digit 1"
    assert steps(page) == wanted(pairs, fits)
    for name, end, bound in (("weight", "high", 0.8), ("ratio", "low", 0.2), ("score", "low", 0.74)):
        enter(page, f"[data-column={name}][data-end={end}]", str(bound))
        with np.errstate(invalid="ignore"):
            fits &= columns[name] <= bound if end == "high" else columns[name] >= bound
        assert steps(page) == wanted(pairs, fits)
    assert 0 < fits[:60].sum() < 10, "the filters leave a few, or this shows little"
    assert page.js("document.querySelector('.count').textContent") == (
        f"{fits[:60].sum()} of 60 pictured pairs match, and {fits.sum()} of {len(fits)} points."
    )
    page.js("document.querySelector('#pairs-browser [type=reset]').click()")
    page.js("new Promise(done => setTimeout(done, 20))")
    assert steps(page) == wanted(pairs, every(pairs))


def test_pages_of_pictures_are_turned(page: Browser) -> None:
    seen = steps(page)
    assert page.js("document.querySelector('.pager button').disabled")
    for _ in range(2):
        page.js("document.querySelectorAll('.pager button')[1].click()")
        seen += steps(page)
    assert page.js("document.querySelectorAll('.pager button')[1].disabled")
    assert page.js("document.querySelector('.pager .place').textContent") == "49–60 of 60"
    assert sorted(seen) == list(range(1, 61))


def test_a_pair_shows_its_own_pictures(page: Browser) -> None:
    enter(page, "[name=sort]", "step")
    enter(page, "[name=order]", "low")
    alts = page.js("[...document.querySelectorAll('.cards .tile')].map(tile => "
                   "[...tile.firstChild.children].map(child => child.alt || child.textContent))")  # fmt: skip
    assert alts[1] == [
        f"{what} {key(1)}"
        for what in ("Original", "Foreground map of", "Generated view of", "First crop of the pair of",
                     "Second crop of the pair of")
    ]  # fmt: skip
    assert alts[3][:2] == ["not at hand", "no map"], "the image of the fourth pair cannot be read"
    assert alts[0][2] == "none", "both views of the first pair are of the original"
    assert page.js("[...document.images].every(image => image.loading === 'lazy' || image.naturalWidth > 0)")


def test_points_are_drawn_and_marked(page: Browser) -> None:
    drawn = (
        "(() => { const cloud = document.querySelector('.cloud'); const all = cloud.getContext('2d')"
        ".getImageData(0, 0, cloud.width, cloud.height).data; let blue = 0, any = 0;"
        "for (let i = 0; i < all.length; i += 4) if (all[i + 3]) { any += 1; blue += all[i + 2] > all[i] + 60; }"
        "return [blue, any]; })()"
    )
    blue, every = page.js(drawn)
    assert blue > 2000
    enter(page, "[data-column=weight][data-end=low]", "0.9")
    fewer, still = page.js(drawn)
    assert 0 < fewer < blue / 2
    assert still > every / 2, "the others stay, faintly"
    enter(page, "[name=up]", "loss")
    assert page.js("document.querySelector('.cloud').getAttribute('aria-label')").startswith(
        "Loss over Background similarity: "
    )
    assert page.js(drawn) != [fewer, still]


def test_the_keyboard_works_every_kind_of_control(page: Browser, pairs: Gathered) -> None:
    page.js("document.querySelectorAll('details').forEach(more => more.open = true)")
    page.js("document.querySelector('[name=level][value=\"300\"]').focus()")
    page.press(" ")
    fits = pairs.columns["level"] != 300
    assert steps(page) == wanted(pairs, fits)
    page.js("document.querySelector('[data-column=ratio][data-end=high]').focus()")
    page.type("0.5")
    fits &= pairs.columns["ratio"] <= 0.5
    assert steps(page) == wanted(pairs, fits)
    page.js("document.querySelector('#pairs-browser [name=order]').focus()")
    page.press("ArrowDown")
    assert steps(page) == wanted(pairs, fits, falling=False)


def test_neighbours_of_the_chosen_image_are_shown(page: Browser) -> None:
    def shown() -> list[str]:
        found: list[str] = page.js("[...document.querySelectorAll('.chosen .tile')].map(tile => tile.title)")
        return found

    assert shown() == [key(0), key(1), key(2), key(3)]
    page.js("document.querySelector('.map').scrollIntoView({block: 'center', behavior: 'instant'})")
    spot = page.js(
        "(() => { const box = document.querySelectorAll('.map circle')[10].getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
    )
    page.click(*spot)
    assert shown() == [key(10), key(11), key(12), key(13)]
    similarity = page.js("document.querySelectorAll('.chosen .near figcaption')[0].childNodes[2].textContent")
    assert similarity == "0.90"
    page.js("(() => { const which = document.querySelector('[name=which]'); which.value = 'wrong';"
            "which.dispatchEvent(new Event('input')); })()")  # fmt: skip
    assert page.js("document.querySelector('#space-browser .place').textContent") == f"1 of {COUNT // 5}"
    page.js("document.querySelector('#space-browser [name=next]').click()")
    assert shown()[0] == key(5)
    assert page.js("document.querySelectorAll('.map .faint').length") == COUNT - COUNT // 5


def test_without_scripts_the_extremes_are_there(browser: Browser, run: RunFolder) -> None:
    browser.open(run.page, scripts=False)
    browser.call("Emulation.setScriptExecutionDisabled", value=False)
    shown = browser.js("document.querySelector('#pairs').innerText")
    assert "Highest weights" in shown
    assert "Sort by" not in shown


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with as many pairs as training keeps at most; their crops are noise, which makes the largest files."""
    run = made_run(tmp_path_factory.mktemp("many") / "run")
    chance = np.random.default_rng(0)
    weight = chance.integers(0, 1000, MOST_PAIRS).astype(np.float32) / 1000
    latest = of_pairs(np.arange(MOST_PAIRS), chance.choice([-1, 0, 200, 400], MOST_PAIRS), weight)
    shown = np.linspace(0, MOST_PAIRS - 1, SAMPLED + 2 * EACH_SIDE).astype(int)
    noise = [thumbnail(Image.fromarray(chance.integers(0, 256, (96, 96, 3), np.uint8)), 96) for _ in range(8)]
    sides = {side: np.array([noise[i % 8] for i in range(len(shown))], object) for side in "ab"}
    write_table(run.pairs / "latest.parquet", latest)
    write_table(run.pairs / "pictured.parquet", {**{name: values[shown] for name, values in latest.items()}, **sides})
    write_page(run, Digits())
    return run


def test_fifty_thousand_recorded_pairs_are_filtered_sorted_and_turned(browser: Browser, many: RunFolder) -> None:
    assert many.page.stat().st_size < 30_000_000
    browser.open(many.page)
    pairs = gathered(many)
    columns, fits, told = pairs.columns, every(pairs), "document.querySelector('.count').textContent"
    assert browser.js(told) == "272 of 272 pictured pairs match, and 4,272 of 4,272 points."
    for by in ("weight", "step", "class"):
        enter(browser, "[name=sort]", by)
        assert steps(browser) == wanted(pairs, fits, by, falling=by != "class")
    seen = steps(browser)
    while not browser.js("document.querySelectorAll('.pager button')[1].disabled"):
        browser.js("document.querySelectorAll('.pager button')[1].click()")
        seen += steps(browser)
    assert sorted(seen) == sorted(columns["step"][:272].tolist())
    browser.js("document.querySelector('[name=level][value=\"400\"]').click()")
    enter(browser, "[data-column=weight][data-end=low]", "0.7505")
    enter(browser, "[data-column=step][data-end=high]", "30000.5")
    fits &= (columns["level"] != 400) & (columns["weight"] >= 0.7505) & (columns["step"] <= 30_000)
    assert steps(browser) == wanted(pairs, fits, "class", falling=False)
    assert browser.js(told) == (f"{fits[:272].sum()} of 272 pictured pairs match, and {fits.sum()} of 4,272 points.")
    assert 0 < fits[:272].sum() < fits.sum() < 1000, "the filters leave some of both"
    assert browser.complaints == []
