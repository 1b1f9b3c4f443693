"""A study of two variants and two seeds that takes seconds, and the images it is of."""

from __future__ import annotations

from pathlib import Path

import yaml

from conftest import Painted

BASE = {
    "generator": {"kind": "embedded", "steps": 1, "batch": 12, "size": 32},
    "foreground": {"sample": 12, "batch": 12},
    "pairs": {"recipe": "small", "size": 16},
    "quality": {"encoder": "generator"},
    "method": {"kind": "simsiam", "projection": 8, "bottleneck": 4},
    "training": {
        "backbone": {"name": "resnet18", "args": {"layers": [1, 1, 1, 1], "channels": [4, 4, 4, 8]}},
        "length": "3 steps",
        "batch": 6,
        "workers": 0,
        "save_every": "1 steps",
        "probe_every": "1 steps",
    },
    "evaluation": [{"kind": "knn", "k": [5], "plain": False}, {"kind": "linear", "iterations": 5, "rates": []}],
    "baseline": True,
}
STUDY = {
    "experiment": "base.yaml",
    "vary": {"views": {"baseline": {"generator": None, "quality": None}, "adaptive + quality": None}},
    "seeds": [0, 1],
    "compare": {"views": "baseline"},
}


def silent(_what: str, _done: int, _total: int, _note: str) -> None:
    return


def made_study(root: Path) -> Path:
    """Twelve painted images, of which ten are trained on, and six to test on, an experiment, and a study of it."""
    source = Painted(18, kinds=2)
    for i in range(len(source)):
        path = root / ("train" if i < 12 else "test") / source.key(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        source.image(i).save(path)
    images = {part: {"kind": "folder", "root": str(root / part)} for part in ("train", "test")}
    (root / "base.yaml").write_text(yaml.safe_dump({"images": images["train"], "test": images["test"], **BASE}))
    (root / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    return root / "study.yaml"
