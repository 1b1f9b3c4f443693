"""A folder of scans as users have them, and a small experiment that learns a generator from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from conftest import Painted

TRUNK: dict[str, Any] = {
    "name": "resnet18",
    "args": {"layers": [1, 1, 1, 1], "channels": [8, 16, 16, 16]},
    "stem_stride": 2,
}
EXPERIMENT: dict[str, Any] = {
    "encoder": {"trunk": TRUNK, "detail_channels": 4, "gist_channels": 6},
    "method": {"kind": "simsiam", "projection": 16, "bottleneck": 8},
    "pairs": {"recipe": "small", "size": 32},
    "training": {"length": "4 steps", "batch": 8, "workers": 0, "save_every": "2 steps", "measure_every": "1 steps"},
    "fit": {
        "network": {"widths": [16, 32], "layers": 1},
        "samples": 48,
        "batch": 8,
        "workers": 0,
        "device": "cpu",
        "measure_every": 2,
        "sample_every": 4,
        "save_every": 3,
    },
}


def scans(root: Path) -> Path:
    """Forty images of 8 to 900 px, three of which are none, and an experiment."""
    (root / "scans").mkdir()
    painted = Painted(40)
    for i in range(40):
        side = (32, 8, 40, 900)[i % 4] if i < 8 else 32
        painted.image(i).resize((side, side)).save(root / "scans" / f"{i:02d}.png")
    (root / "scans" / "10.png").write_bytes(b"")
    (root / "scans" / "11.png").write_bytes(b"no image at all")
    whole = (root / "scans" / "12.png").read_bytes()
    (root / "scans" / "12.png").write_bytes(whole[: len(whole) // 2])
    experiment = {"images": {"kind": "folder", "root": str(root / "scans")}, **EXPERIMENT}
    (root / "fit.yaml").write_text(yaml.safe_dump(experiment))
    return root
