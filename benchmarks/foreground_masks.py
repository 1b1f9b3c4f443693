"""Does the foreground direction find what people call foreground? Measured on hand-drawn masks.

    GENVIEW_DATA=FOLDER python benchmarks/foreground_masks.py --encoder natural --size 128

needs the 200 masked photographs of GENVIEW_DATA/coco256_det320. The direction, its sign and its threshold are fitted
without the masks, as `analyse` does; a token is truly foreground where more than half of it lies in the mask.
`--encoder` is anything that `load_frozen` takes, or a stand-in: 'colours' (local means and deviations of colour and
gradient) or 'random' (a ResNet-18 that was never trained). The last line printed is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from genview.encoders import Encoded, FrozenEncoder, TimmTower, load_frozen
from genview.errors import UserError
from genview.foreground import (
    CentrePrior,
    Direction,
    ScoreHistogram,
    TokenMoments,
    foreground_ratio,
    principal_direction,
)
from genview.images import square

BATCH = 25


@dataclass(frozen=True)
class Seen:
    """Tokens M×N×D of M images, the share M×N of each that is thing, and the grid (h, w)."""

    tokens: Tensor
    share: Tensor
    grid: tuple[int, int]


class Colours:
    """Local statistics of colour and gradient per 8×8 pixels, at three scales; no learning anywhere."""

    name = "colours"

    def __init__(self, size: int = 224) -> None:
        self.size = size

    def encode(self, images: Tensor) -> Encoded:
        """Tokens B×N×36; the embedding is their mean."""
        grey = images.mean(dim=1, keepdim=True)
        red, blue = images[:, :1] - images[:, 1:2], images[:, 2:] - images[:, :2].mean(dim=1, keepdim=True)
        across, down = F.pad(grey.diff(dim=3).abs(), (0, 1)), F.pad(grey.diff(dim=2).abs(), (0, 0, 0, 1))
        base, maps = torch.cat([grey, red, blue, red.abs() + blue.abs(), across, down], dim=1), []
        for window in (8, 16, 32):
            padded = F.pad(base, [(window - 8) // 2] * 4, mode="reflect")
            mean = F.avg_pool2d(padded, window, 8)
            maps += [mean, (F.avg_pool2d(padded**2, window, 8) - mean**2).clamp(min=0).sqrt()]
        tokens = torch.cat(maps, dim=1)
        grid = (tokens.shape[2], tokens.shape[3])
        flat = tokens.flatten(2).transpose(1, 2)
        return Encoded(flat, flat.mean(dim=1), grid)

    def to(self, device: torch.device | str) -> Colours:  # noqa: ARG002
        """Nothing to move."""
        return self


def load(name: str, size: int | None) -> FrozenEncoder:
    """Return the encoder that `--encoder` names."""
    if name == "colours":
        return Colours(size or 224)
    if name == "random":
        torch.manual_seed(0)
        return TimmTower(name, timm.create_model("resnet18", pretrained=False), size)
    return load_frozen(name, size)


def look(encoder: FrozenEncoder, folder: Path) -> Seen:
    """Encode every image that has a mask, and bring the masks to the grid of the tokens."""
    masks, tokens, shares, grid = masks_in(folder), [], [], (0, 0)
    for start in range(0, len(masks), BATCH):
        photos, things = read(masks[start : start + BATCH], encoder.size)
        encoded = encoder.encode(photos)
        grid = encoded.grid
        tokens.append(encoded.tokens)
        shares.append(F.adaptive_avg_pool2d(things, grid).flatten(1))
    return Seen(torch.cat(tokens), torch.cat(shares), grid)


def masks_in(folder: Path) -> list[Path]:
    """Mask files below `folder`; none where it is not there."""
    return sorted((folder / "fg_masks").glob("*/*.png"))


def read(masks: Sequence[Path], size: int) -> tuple[Tensor, Tensor]:
    """Read photographs M×3×S×S in [0, 1] and their masks M×1×S×S, 1 where there is a thing."""
    photos = [file.parents[2] / "images" / file.parent.name / f"{file.stem}.jpg" for file in masks]
    return (
        torch.stack([pixels(file, "RGB", size) for file in photos]),
        torch.stack([pixels(file, "L", size) for file in masks]),
    )


def pixels(file: Path, mode: str, size: int) -> Tensor:
    """The centre square of an image file, C×S×S in [0, 1]."""
    with Image.open(file) as image:
        found = np.array(square(image.convert(mode), size), dtype=np.float32)
    return torch.from_numpy(found).reshape(size, size, -1).permute(2, 0, 1) / 255


def fit(seen: Seen, share: float) -> tuple[Direction, dict[int, float]]:
    """Direction of the tokens, and the threshold along it for either sign."""
    moments = TokenMoments(seen.tokens.shape[-1])
    moments.add(seen.tokens)
    direction, variance = moments.direction()
    histogram = ScoreHistogram(float(moments.mean @ direction.vector.double()), variance)
    histogram.add(direction.scores(seen.tokens))
    return direction, {1: histogram.threshold(share), -1: -histogram.threshold(1 - share)}


def rules(scores: Tensor, grid: tuple[int, int]) -> dict[str, tuple[int, float]]:
    """What each rule says of scores M×N: sign and evidence."""
    prior = CentrePrior(grid)
    prior.add(scores)
    deviation = scores.double() - scores.double().mean()
    skewness = float((deviation**3).mean() / (deviation**2).mean() ** 1.5)
    return {"centre": prior.decide(), "minority": (1 if skewness >= 0 else -1, skewness)}


def balanced_accuracy(found: Tensor, truth: Tensor) -> float:
    """Mean of the shares of foreground and of background tokens that are found as such."""
    return 0.5 * float(found[truth].float().mean()) + 0.5 * float((~found[~truth]).float().mean())


def better_side(scores: Tensor, truth: Tensor, share: float) -> int:
    """The sign whose top `share` of the scores agrees better with the masks."""
    flat, wanted = scores.flatten(), truth.flatten()
    count = max(1, round(share * len(flat)))
    high, low = (balanced_accuracy(s > s.kthvalue(len(s) - count).values, wanted) for s in (flat, -flat))
    return 1 if high >= low else -1


def sign_agreement(seen: Seen, share: float, halves: int) -> dict[str, float]:
    """Share of random half-samples in which a rule picks the better side; the direction is fitted on each half."""
    chance, right = torch.Generator().manual_seed(0), dict.fromkeys(("centre", "minority"), 0)
    for _ in range(halves):
        half = torch.randperm(len(seen.tokens), generator=chance)[: len(seen.tokens) // 2]
        scores = principal_direction(seen.tokens[half].flatten(0, 1)).scores(seen.tokens[half])
        better = better_side(scores, seen.share[half] > 0.5, share)
        for name, (sign, _) in rules(scores, seen.grid).items():
            right[name] += sign == better
    return {name: count / halves for name, count in right.items()}


def mask_agreement(seen: Seen, share: float) -> dict[str, float]:
    """Mask and ratio on the side that the centre rule picks, and the mask that is always the image's middle."""
    direction, thresholds = fit(seen, share)
    chosen, evidence = rules(direction.scores(seen.tokens), seen.grid)["centre"]
    direction = direction if chosen > 0 else direction.flipped()
    found, truth = direction.scores(seen.tokens) > thresholds[chosen], seen.share > 0.5
    ratio, real = foreground_ratio(seen.tokens, direction, thresholds[chosen]).numpy(), seen.share.mean(dim=1).numpy()
    middle = middle_of(seen.grid, share).expand_as(truth)
    return {
        "explained": direction.explained,
        "sign_evidence": evidence,
        "balanced_accuracy": balanced_accuracy(found, truth),
        "iou": float((found & truth).sum() / (found | truth).sum()),
        "middle_balanced_accuracy": balanced_accuracy(middle, truth),
        "middle_iou": float((middle & truth).sum() / (middle | truth).sum()),
        "pearson": float(np.corrcoef(ratio, real)[0, 1]),
        "spearman": float(np.corrcoef(ranks(ratio), ranks(real))[0, 1]),
    }


def middle_of(grid: tuple[int, int], share: float) -> Tensor:
    """Mask N of the stated share of tokens that lie nearest to the centre: what one says without looking."""
    rows, columns = ((torch.arange(side) + 0.5) / side - 0.5 for side in grid)
    distance = (rows[:, None] ** 2 + columns[None, :] ** 2).flatten()
    nearest = distance.argsort(stable=True)[: round(share * len(distance))]
    return torch.zeros(len(distance), dtype=torch.bool).index_fill(0, nearest, value=True)


def ranks(values: np.ndarray) -> np.ndarray:
    """Ranks from 0, the mean rank for equal values."""
    _, place, count = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(count) - (count + 1) / 2)[place])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="natural", help="what load_frozen takes, or 'colours', 'random'")
    parser.add_argument("--size", type=int, help="side in pixels; the encoder's own where left out")
    parser.add_argument("--share", type=float, default=0.4, help="share of tokens that is to be foreground")
    parser.add_argument("--halves", type=int, default=100, help="random half-samples for the sign")
    chosen = parser.parse_args(arguments)
    folder = Path(os.environ.get("GENVIEW_DATA", "")) / "coco256_det320"
    if "GENVIEW_DATA" not in os.environ or not (folder / "fg_masks").is_dir():
        print("Set GENVIEW_DATA to the folder that holds coco256_det320 with its fg_masks.", file=sys.stderr)
        return 2
    try:
        encoder = load(chosen.encoder, chosen.size)
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    seen = look(encoder, folder)
    signs = sign_agreement(seen, chosen.share, chosen.halves)
    found = {f"sign_by_{name}": value for name, value in signs.items()} | mask_agreement(seen, chosen.share)
    for name, value in found.items():
        print(f"{name:25} {value:8.3f}")
    head = {"encoder": chosen.encoder, "size": encoder.size, "grid": list(seen.grid), "images": len(seen.tokens)}
    print(json.dumps(head | {name: round(value, 4) for name, value in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
