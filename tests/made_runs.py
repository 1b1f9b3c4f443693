"""Run folders with known contents for the tests of pages."""

from __future__ import annotations

import io
import shutil
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from conftest import score
from genview.images.source import UnreadableImage
from genview.images.thumbnail import thumbnail
from genview.report import write_page
from genview.store import RunFolder, write_json, write_table, write_tar

HOSTILE = "<script>alert(1)</script>/\"'><img src=x onerror=alert(2)>.png"
COUNT, SIZE = 20, 32
SCORES = 0.75 + 0.01 * np.array([3, -5, 1, 5, -1, 2, 0, -3, 4, -4, -2, 0, *range(8)])
"""Those of the views at level 0, the first twelve, are 0.75 on average."""
SKEWED = np.concatenate([[0.9, 0.7, 0.8], np.full(COUNT - 3, 0.75)]).astype(np.float32)


class Page(HTMLParser):
    """The elements of a page: tags with attributes, text, and the text of each section."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self._section = "header"
        self.feed(self.source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append((dict(attrs), ""))
        if tag == "section":
            self._section = str(dict(attrs)["id"])

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script" and self.cdata_elem == "script":
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)
            return
        self.texts[self._section] = self.texts.get(self._section, "") + data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


class Digits:
    """The images of the run below, as a source; number 3 cannot be read."""

    classes = ()

    def __len__(self) -> int:
        return COUNT

    def key(self, i: int) -> str:
        return key(i)

    def label(self, i: int) -> int | None:
        return None if i < COUNT else 0

    def image(self, i: int) -> Image.Image:
        if i == 3:
            raise UnreadableImage("made so")
        return Image.fromarray(digits()[i])


def key(i: int) -> str:
    return HOSTILE if i == 0 else f"digits/{i:03d}.png"


@cache
def digits() -> np.ndarray:
    """Images uint8 N×S×S×3."""
    small = (load_digits().images[:COUNT] * 255 / 16).astype(np.uint8)
    return np.repeat(np.repeat(np.repeat(small, 4, 1), 4, 2)[..., None], 3, axis=3)


def add_analysis(run: RunFolder) -> None:
    images = digits()
    maps = images[:, ::4, ::4, 0].astype(np.float32) / 255 - 0.5
    ratio = (maps > 0).mean((1, 2)).astype(np.float32)
    keys = [key(i) for i in range(COUNT)]
    embedding = np.zeros((COUNT, 4), np.float16)
    write_table(
        run.analysis / "part-00000.parquet",
        {
            "key": keys,
            "ratio": np.linspace(0, 1, COUNT, dtype=np.float32),
            "embedding": embedding,
            "map": maps.reshape(COUNT, -1).astype(np.float16),
        },
    )
    summary = {"threshold": 0.12345678, "sign": {"rule": "<b>border</b>"}, "grid": list(maps.shape[1:])}
    write_json(run.analysis / "summary.json", summary)
    np.savez(run.analysis / "examples.npz", images=images, maps=maps, ratio=ratio, keys=np.array(keys))


def add_views(run: RunFolder) -> None:
    """Twelve views at level 0 and eight at level 300, each of one colour: (10·row, 0, 0)."""
    members = []
    for i in range(COUNT):
        buffer = io.BytesIO()
        Image.new("RGB", (SIZE, SIZE), (10 * i, 0, 0)).save(buffer, "png")
        members.append((f"{i}.png", buffer.getvalue()))
    places = write_tar(run.views / "part-00000.tar", members)
    write_table(
        run.views / "part-00000.parquet",
        {
            "key": [key(i) for i in range(COUNT)],
            "draw": np.zeros(COUNT, np.int32),
            "level": np.where(np.arange(COUNT) < 12, 0, 300).astype(np.int32),
            "status": ["made"] * COUNT,
            "shard": ["part-00000.tar"] * COUNT,
            "offset": np.array([offset for offset, _ in places]),
            "length": np.array([length for _, length in places]),
            "score": np.where(np.arange(COUNT) < 12, SCORES, np.nan).astype(np.float32),
            "diversity": np.where(np.arange(COUNT) < 12, 0.25, np.nan).astype(np.float32),
        },
    )


def add_pairs(run: RunFolder) -> None:
    """Twenty pairs with pictures whose weights are 0.05, 0.15, … 1.95 in a shuffled order."""
    place = np.arange(COUNT)
    weight = np.random.default_rng(0).permutation(place * 0.1 + 0.05).astype(np.float32)
    sides = {side: np.array([png(image) for image in images], object) for side, images in both_sides().items()}
    write_table(run.pairs / "pictured.parquet", {**of_pairs(place, place - 1, weight), **sides})


def both_sides() -> dict[str, np.ndarray]:
    return {"a": digits(), "b": digits()[::-1]}


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png")
    return buffer.getvalue()


def of_pairs(place: np.ndarray, level: np.ndarray, weight: np.ndarray) -> dict[str, np.ndarray]:
    """Columns that training records of pairs."""
    return {
        "key": np.array([key(i % COUNT) for i in place.tolist()], object),
        "class": np.array([f"digit {i % 3}" for i in place], object),
        "draw": np.where(level < 0, -1, 0),
        "level": level,
        "weight": weight,
        "foreground": np.sign(level).astype(np.float32),
        "background": weight,
        "loss": weight,
        "step": place + 1,
    }


def add_quality(run: RunFolder) -> None:
    """Three hundred pairs, a hundred of each of three levels."""
    place = np.arange(300)
    rows = of_pairs(place, place // 100 * 100 - 1, (place % 100 / 100).astype(np.float32))
    write_table(run.pairs / "latest.parquet", rows)


def add_weighted(run: RunFolder) -> None:
    add_pairs(run)
    add_quality(run)


def add_measures(run: RunFolder, *, knn: float, linear: float) -> None:
    for step in range(10, 110, 10):
        run.measure("train/loss", 5 - step / 100, step)
        run.measure("train/feature_std", float("nan") if step == 10 else 0.8, step)
        run.measure("train/images_per_second", 100.0 + step, step)
        run.measure("train/waiting", 0.25, step)
        run.measure("quality/weight_std", 0.2, step)
    run.measure("online/knn/top1@k=20", 0.3, 50, "online-1")
    score(run, {"knn/top1@k=20": knn, "linear/top1": linear})


def add_portrait(run: RunFolder) -> None:
    """Twenty test images in a row from left to right, of two classes in turn, of which every fifth is mistaken.

    The neighbours of image i are i + 1, i + 2 and i + 3, cyclically, with similarities 0.9, 0.8 and 0.7.
    """
    place = np.arange(COUNT)
    label = np.array([HOSTILE if i % 2 else "even" for i in place], object)
    predicted = np.where(place % 5 == 0, np.roll(label, 1), label)
    portrait = {
        "key": np.array([key(i) for i in range(COUNT)], object),
        "label": label,
        "predicted": predicted,
        "x": place.astype(np.float32),
        "y": (place % 3).astype(np.float32),
        "neighbours": ((place[:, None] + [1, 2, 3]) % COUNT).astype(np.int32),
        "similarity": np.tile(np.array([0.9, 0.8, 0.7], np.float32), (COUNT, 1)),
        "picture": np.array([thumbnail(Image.fromarray(image), 48) for image in digits()], object),
    }
    write_table(run.evaluation / "portrait.parquet", portrait)
    write_table(run.evaluation / "predictions.parquet", {"label": label, "predicted": predicted})


def made_run(root: Path) -> RunFolder:
    """A finished run."""
    run = RunFolder(root)
    add_analysis(run)
    add_views(run)
    add_weighted(run)
    add_portrait(run)
    add_measures(run, knn=0.671, linear=0.5)
    add_measures(run.baseline, knn=0.631, linear=0.5125)
    for i in range(60):
        run.quarantine(f"bad/{i}.png" if i else HOSTILE, "empty & <truncated>")
    run.experiment.write_text("images:\n  root: <photos> & more\n")
    return run


def shown_run(root: Path) -> RunFolder:
    """A finished run with its page, and with results of its best backbone."""
    run = made_run(root)
    score(run, {"linear/top1": 0.75}, "best")
    score(run, {"knn/top1@k=20": 0.671, "linear/top1": 0.5})
    write_page(run, Digits())
    return run


def copied(run: RunFolder, folder: Path) -> RunFolder:
    shutil.copytree(run.root, folder / run.root.name)
    return RunFolder(folder / run.root.name)
