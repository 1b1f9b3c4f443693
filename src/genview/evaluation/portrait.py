"""What the page shows of the learned space: test images on a map, their neighbours, what a probe takes them for."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from genview.evaluation.features import Features
from genview.evaluation.linear import fitted
from genview.evaluation.rows import Rows
from genview.evaluation.subject import Subject
from genview.images import batches
from genview.images.source import silent
from genview.images.thumbnail import thumbnail
from genview.seeds import seed_of
from genview.store import write_table

MOST_SHOWN, MOST_KNOWN = 2_000, 20_000
NEIGHBOURS = 8
SIDE = 48
COMPONENTS, FEW, COLLAPSED = 50, 8, 1e-6
L2, ITERATIONS = 1e-3, 100
PORTRAIT, PREDICTIONS = "portrait.parquet", "predictions.parquet"


class Shown(NamedTuple):
    """Some test images: their indices, features N×D, and files of small pictures."""

    indices: list[int]
    features: Tensor
    pictures: list[bytes]


def portray(subject: Subject, folder: Path) -> None:
    """Write two tables to `folder` for the page, unless they are there; the portrait comes last, so it tells of both.

    `predictions.parquet`: label and predicted class of every test image, by a probe that is fitted on at most
    `MOST_KNOWN` training images. `portrait.parquet`: of at most `MOST_SHOWN` test images key, label, predicted,
    x and y on a map by t-SNE (van der Maaten and Hinton, JMLR 2008), neighbours (rows of this table, by falling
    cosine), similarity and picture.

    Raises:
        UserError: images have no labels, or none can be read.
    """
    if (folder / PORTRAIT).exists():
        return
    tell = subject.reading.tell or silent
    tell("portrait", 0, 3, "linear probe")
    train, test = subject.features
    probe = Probe.on(train, subject)
    names = np.array(subject.test.classes, dtype=object)
    predicted = names[probe(test.x, len(names))]
    write_table(folder / PREDICTIONS, {"label": names[test.y.numpy()], "predicted": predicted})
    tell("portrait", 1, 3, "pictures")
    shown = _shown(subject)
    tell("portrait", 2, 3, "map by t-SNE")
    place = mapped(shown.features.numpy(), subject.seed)
    nearest, similarity = neighbours(shown.features)
    columns = {
        "key": np.array([subject.test.key(i) for i in shown.indices], dtype=object),
        "label": np.array([names[subject.test.label(i)] for i in shown.indices], dtype=object),
        "predicted": names[probe(shown.features, len(names))],
        "x": place[:, 0],
        "y": place[:, 1],
        "neighbours": nearest.numpy().astype(np.int32),
        "similarity": similarity.numpy().astype(np.float32),
        "picture": np.array(shown.pictures, dtype=object),
    }
    write_table(folder / PORTRAIT, columns)
    tell("portrait", 3, 3, "")


class Probe(NamedTuple):
    """A linear probe on standardised features."""

    rows: Rows
    weight: Tensor

    @staticmethod
    def on(train: Features, subject: Subject) -> Probe:
        """Fit it on at most `MOST_KNOWN` images."""
        chance = torch.Generator().manual_seed(seed_of(subject.seed, "", 0, "portrait"))
        rows = Rows.standardised(train, subject.reading.device)
        some = rows.only(torch.randperm(len(train.y), generator=chance)[:MOST_KNOWN].sort().values.tolist())
        return Probe(rows, fitted(some, int(train.y.max()) + 1, L2, ITERATIONS))

    def __call__(self, x: Tensor, classes: int) -> np.ndarray:
        """Return the predicted class of each row of features, one of the first `classes`."""
        rows = self.rows.of(Features(x, torch.zeros(len(x), dtype=torch.int64)))
        return np.concatenate(
            [(part @ self.weight)[:, :classes].argmax(dim=1).cpu().numpy() for part, _ in rows.parts()]
        )


@torch.no_grad()
def _shown(subject: Subject) -> Shown:
    """Encode an even sample of the test images and make small pictures of them, in one pass."""
    reading, count = subject.reading, len(subject.test)
    chosen = np.linspace(0, count - 1, min(count, MOST_SHOWN)).round().astype(int).tolist()
    backbone = subject.load().eval()
    indices: list[int] = []
    rows: list[Tensor] = []
    pictures: list[bytes] = []
    for found in batches(
        subject.test,
        size=reading.size,
        batch=reading.batch,
        workers=reading.workers,
        indices=chosen,
        unreadable=reading.unreadable,
    ):
        indices += found.indices.tolist()
        rows.append(backbone(found.images.to(reading.device)).float().cpu())
        pixels = (found.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        pictures += [thumbnail(Image.fromarray(image), SIDE) for image in pixels]
    return Shown(indices, torch.cat(rows), pictures)


def neighbours(features: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows nearest to each of N rows by cosine, and the cosines, N×K: `NEIGHBOURS` or all others."""
    x = F.normalize(features, dim=1)
    similarity = (x @ x.T).fill_diagonal_(-torch.inf)
    values, rows = similarity.topk(min(NEIGHBOURS, len(x) - 1), dim=1)
    return rows, values


def mapped(features: np.ndarray, seed: int) -> np.ndarray:
    """Lay features N×D out on a plane, float32 N×2: their directions by t-SNE.

    A handful, and features that have collapsed, are laid out by their two first principal components.
    """
    from sklearn.manifold import TSNE

    x = principal(features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12))
    spread = float(x[:, 0].std())
    if len(x) < FEW or spread < COLLAPSED:
        return x[:, :2].astype(np.float32)
    start = (x[:, :2] / spread * 1e-4).astype(np.float32)  # as sklearn's own start, which no spread makes NaN
    perplexity, chance = min(30.0, (len(x) - 1) / 3), seed_of(seed, "", 0, "map") % 2**32
    return np.asarray(TSNE(perplexity=perplexity, init=start, random_state=chance).fit_transform(x), dtype=np.float32)


def principal(x: np.ndarray) -> np.ndarray:
    """Return the first `COMPONENTS` principal components of rows N×D, N×C with C ≥ 2, the widest first."""
    centred = x.astype(np.float64) - x.mean(axis=0, dtype=np.float64)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    found = (vectors * np.sqrt(np.maximum(values, 0)))[:, ::-1][:, :COMPONENTS]
    return np.pad(found, ((0, 0), (0, max(0, 2 - found.shape[1]))))
