"""timm's folder, as on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

import timm
from timm.models.vision_transformer import VisionTransformer

from genview.encoders.backbone import export
from genview.export.target import Features, Source, of_normalised, record, statistics_line, stem_lines, with_stem
from genview.store import write_json


class ToTimm:
    """config.json and model.safetensors, for `timm.create_model("local-dir:FOLDER")`, or `hf-hub:` once uploaded.

    A stem that is not ImageNet's, which timm's config cannot say, stands in it under `genview`, and the lines that
    the model needs then are in the snippet.
    """

    library = "timm"
    what = "timm's layout of the Hugging Face hub"
    imports = "import timm\nimport torch\n"

    def write(self, source: Source, folder: Path) -> None:
        """Write both files."""
        export(source.backbone, folder / "model.safetensors")
        net, settings = source.backbone.net, source.settings
        prepared = {
            "tag": "genview",
            "input_size": [3, source.size, source.size],
            "fixed_input_size": isinstance(net, VisionTransformer) and not net.dynamic_img_size,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "mean": list(settings.mean),
            "std": list(settings.std),
            "num_classes": 0,
            "first_conv": net.pretrained_cfg.get("first_conv"),
            "classifier": net.pretrained_cfg.get("classifier"),
        }
        config = {
            "architecture": settings.name,
            "num_classes": 0,
            "num_features": source.backbone.width,
            "model_args": dict(settings.args),
            "pretrained_cfg": prepared,
            "genview": record(source),
        }
        write_json(folder / "config.json", config)

    def read(self, source: Source, folder: Path) -> Features:
        """Let timm create the model from the folder."""
        net = timm.create_model(f"local-dir:{folder}", pretrained=True)
        return of_normalised(source, with_stem(net, source.settings).eval())

    def snippet(self, source: Source) -> str:
        """Return lines for timm."""
        return (
            f"{statistics_line(source.settings)}"
            'model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()\n'
            f"{stem_lines(source.settings)}"
            "features = model((images - mean) / std)\n"
        )
