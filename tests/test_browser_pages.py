"""Every page as its readers meet it, in a headless Chromium: wide or narrow, light or dark, by mouse or keyboard."""

from __future__ import annotations

import io
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from browser import Browser, fresh_browser
from conftest import score
from genview.report import Compared, Design, Entry, write_comparison, write_fit_page, write_page, write_study
from genview.store import RunFolder, write_table
from genview.training.samples import keep
from made_runs import HOSTILE, Digits, add_measures, made_run

browser = pytest.fixture(scope="module")(fresh_browser)
DESKTOP, PHONE = (1280, 900), (390, 844)
CONTROLS = "[...document.querySelectorAll('a, button, input, select, summary, [tabindex]')]"
SCROLLED = (
    "[...document.querySelectorAll('body *')].filter(box => box.scrollWidth > box.clientWidth + 1"
    " && ['auto', 'scroll'].includes(getComputedStyle(box).overflowX))"
)
"""Boxes that are scrolled sideways."""
CUT = """[...document.querySelectorAll('header *, section *, footer')].filter(one => {
  const card = one.closest('header, section') || one;
  if (!one.checkVisibility()) return false;
  for (let box = one.parentElement; card.contains(box); box = box.parentElement)
    if (getComputedStyle(box).overflowX !== 'visible') return false;
  const open = getComputedStyle(one).overflowX === 'visible';
  const over = open && one.clientWidth && one.scrollWidth > one.clientWidth + 1;
  const edge = card.getBoundingClientRect().right - parseFloat(getComputedStyle(card).paddingRight);
  return over || (one !== card && one.getBoundingClientRect().right > edge + 1);
}).map(one => one.outerHTML.slice(0, 99))"""
"""What reaches over the padding of its section, or is wider than its own box, where nothing scrolls it."""
TEXT = """(() => {
  const pen = new OffscreenCanvas(1, 1).getContext('2d', {willReadFrequently: true});
  const pixel = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const ground = (one) => {
    const colour = one ? pixel(getComputedStyle(one).backgroundColor) : [255, 255, 255, 255];
    return colour[3] === 255 ? colour : ground(one.parentElement);
  };
  const found = {};
  for (const one of document.querySelectorAll('body *')) {
    const text = [...one.childNodes].map(node => node.nodeType === 3 ? node.data.trim() : '').join('');
    if (!text || !one.checkVisibility() || one.closest(':disabled')) continue;
    const style = getComputedStyle(one);
    const pair = [pixel(one instanceof SVGElement ? style.fill : style.color).slice(0, 3), ground(one).slice(0, 3)];
    found[pair] = [...pair, text];
  }
  return Object.values(found);
})()"""
"""Colour, ground and an example of all text; what is disabled need not stand out."""
REFUSED = """new Promise(done => {
  addEventListener('securitypolicyviolation', event => done(event.violatedDirective));
  const image = new Image();
  image.onerror = () => setTimeout(done, 500, 'asked for');
  image.src = 'http://127.0.0.1:9/x.png';
  document.body.append(image);
})"""


def of_run(root: Path) -> Path:
    """One class is always right and one never, so that cells of the matrix have the deepest colours there are."""
    run = made_run(root)
    predicted = np.array([HOSTILE] * 40, object)
    write_table(
        run.evaluation / "predictions.parquet",
        {"label": np.array([HOSTILE, "even"], object).repeat(20), "predicted": predicted},
    )
    return write_page(run, Digits())


def of_comparison(root: Path) -> Path:
    one, other = RunFolder(root / "run"), RunFolder(root / "another run with a long name")
    add_measures(one, knn=0.6, linear=0.5)
    add_measures(other, knn=0.5, linear=0.4)
    two = [
        Compared(one, {"method": {"kind": "moco_v2", "temperature": 0.2}}),
        Compared(other, {"method": {"kind": "simsiam"}}),
    ]
    return write_comparison(two, root / "comparison.html")


def of_study(root: Path) -> Path:
    """Twelve runs by two methods; the last has failed, and so a variant has one seed."""
    chance = np.random.default_rng(0)
    entries = []
    for method, views, seed in product(
        ("simsiam", "moco_v2"), ("base", "random level", "adaptive + quality"), (0, 1)
    ):
        run = RunFolder(root / "runs" / method / views.replace(" + ", " ").replace(" ", "-") / f"seed-{seed}")
        entries.append(Entry((method, views), seed, run))
        names = ("knn/top1@k=20", "linear/top1", "semi/top1@share=0.01", "finetune/top1")
        score(run, {name: float(chance.uniform(0.3, 0.5)) for name in names})
        for path in (run.backbone, run.finished, run.page):
            path.write_bytes(b"")
    for path in (run.backbone, run.finished, run.page):
        path.unlink()
    run.failure.write_text(f"Traceback\nUserError: {'/a/long/path' * 9}/{HOSTILE} is damaged")
    write_study(Design(("method", "views"), tuple(entries), 1, "base"), root)
    return root / "report.html"


def of_generator(root: Path) -> Path:
    run, chance = RunFolder(root), np.random.default_rng(0)
    for step in (10, 20, 30):
        for name in ("loss", "images_per_second", "waiting"):
            run.measure(f"fit/{name}", float(chance.random()), step)
        for name, level in product(("rmse", "apart", "similarity"), (0, 200, 400)):
            run.measure(f"online/{name}@level={level}", float(chance.random()), step)
    keep(run.samples, 30, torch.rand(8, 3, 32, 32), torch.zeros(2, 3, 8, 3, 32, 32, dtype=torch.uint8))
    run.quarantine(HOSTILE * 2, "empty & <truncated>")
    run.experiment.write_text(f"images: {{root: {'<photos>' * 20}}}\n")
    (root / "model_index.json").write_text("{}")
    return write_fit_page(run)


MADE = {"run": of_run, "comparison": of_comparison, "study": of_study, "generator": of_generator}


@pytest.fixture(scope="module", params=MADE)
def page(browser: Browser, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a page; without a browser none is made."""
    assert browser
    root = tmp_path_factory.mktemp(request.param) / f"a {request.param} with a name that is long"
    root.mkdir()
    return MADE[request.param](root)


def test_it_asks_for_nothing_and_does_not_complain(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.load_pictures()
    assert browser.complaints == []
    assert browser.requests[0] == page.as_uri()
    assert {address[:11] for address in browser.requests[1:]} <= {"data:image/"}


def test_what_it_would_ask_for_is_refused(browser: Browser, page: Path) -> None:
    """Even if something were let in by mistake, the policy would keep it from leaving the page."""
    browser.open(page)
    assert browser.js(REFUSED) == "img-src"
    browser.js(
        "(() => { const script = document.createElement('script'); script.textContent = 'window.ran = true';"
        "document.body.append(script); })()"
    )
    assert browser.js("window.ran === undefined"), "no script runs but the page's own"


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_nothing_is_cut_and_text_stands_out(
    browser: Browser, page: Path, size: tuple[int, int], *, dark: bool
) -> None:
    browser.open(page, width=size[0], height=size[1], dark=dark)
    browser.load_pictures()
    browser.js("document.querySelectorAll('details').forEach(more => more.open = true)")
    assert browser.js("document.documentElement.scrollWidth - document.documentElement.clientWidth") == 0
    assert browser.js(CUT) == []
    faint = [(text, ink, ground) for ink, ground, text in browser.js(TEXT) if contrast(ink, ground) < 4.5]
    assert faint == []
    shade = brightness(browser.picture("header"))
    assert shade < 60 if dark else shade > 200
    assert browser.complaints == []


def brightness(picture: bytes) -> float:
    """That of most of a picture, from 0 to 255."""
    return float(np.median(np.asarray(Image.open(io.BytesIO(picture)).convert("L"))))


def luminance(rgb: list[int]) -> float:
    """Relative luminance as WCAG 2 defines it."""
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: list[int], other: list[int]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_tab_reaches_every_control_and_each_shows_that_it_has_the_focus(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.js("document.querySelectorAll('details').forEach(more => more.open = true)")
    able = browser.js(f"{CONTROLS}.flatMap((one, place) => one.disabled ? [] : [place])")
    reached, at = set(), "document.activeElement"
    for _ in able:
        browser.press("Tab")
        place, line = browser.js(
            f"(look => [{CONTROLS}.indexOf({at}), `${{look.outlineStyle}} ${{look.outlineWidth}}`])"
            f"(getComputedStyle({at}))"
        )
        assert line == "solid 2px", browser.js(f"{at}.outerHTML.slice(0, 99)")
        reached.add(place)
    assert reached == set(able)


def test_the_keyboard_scrolls_what_is_wider_than_a_phone(browser: Browser, page: Path) -> None:
    browser.open(page, width=PHONE[0], height=PHONE[1])
    count = browser.js(f"{SCROLLED}.length")
    assert count, "or this shows nothing"
    assert browser.js(f"{SCROLLED}.every(box => box.tabIndex === 0)"), "not all browsers let Tab stop there otherwise"
    for place in range(count):
        browser.js(f"{SCROLLED}[{place}].focus()")
        browser.press("ArrowRight")
        browser.until(f"{SCROLLED}[{place}].scrollLeft > 0")


def test_the_keyboard_follows_links_to_sections(browser: Browser, page: Path) -> None:
    browser.open(page)
    anchors = browser.js("[...document.querySelectorAll('nav a')].map(link => link.hash)")
    assert anchors == browser.js("[...document.querySelectorAll('section')].map(section => '#' + section.id)")
    browser.js("[...document.querySelectorAll('nav a')].at(-1).focus()")
    browser.press("Enter")
    browser.until(f"location.hash === {anchors[-1]!r}")
    top = f"document.querySelector({anchors[-1]!r}).getBoundingClientRect().top"
    browser.until(f"{top} >= 0 && {top} < innerHeight")


@pytest.mark.parametrize("page", ["study"], indirect=True)
def test_the_keyboard_goes_from_a_study_to_its_runs(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.js("document.querySelectorAll('#runs a').length") == 11, "the twelfth run has failed"
    browser.js("[...document.querySelectorAll('#runs a')].at(-1).focus()")
    browser.follow()
    assert browser.js("location.href") == (page.parent / "runs/moco_v2/adaptive-quality/seed-0/report.html").as_uri()


@pytest.mark.parametrize("page", ["study"], indirect=True)
def test_the_figure_of_a_study_is_legible_on_a_phone_and_dark_in_the_dark(browser: Browser, page: Path) -> None:
    """It is drawn at 150 dots an inch with letters of 9 points."""
    with Image.open(page.parent / "figure.png") as figure:
        letters = 9 / 72 * 150 / figure.width
    for dark in (False, True):
        browser.open(page, width=PHONE[0], height=PHONE[1], dark=dark)
        across = browser.js("document.querySelector('.forest').getBoundingClientRect().width")
        assert letters * across > 11, "pixels"
        shade = brightness(browser.picture(".scroll:has(.forest)"))
        assert shade < 60 if dark else shade > 200
