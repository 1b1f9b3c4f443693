"""ONNX: one file that computes features of images in [0, 1], normalisation inside."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from genview.errors import UserError
from genview.export.target import Features, Source, record
from genview.store import appearing, write_json

OPSET = 17
"""The first with LayerNormalization; runtimes since 2022 know it."""


class ToOnnx:
    """model.onnx, from `images` B×3×size×size in [0, 1] to `features` B×width for any B, and config.json."""

    library = "onnx"
    what = "ONNX"
    imports = "import onnxruntime\nimport torch\n"

    def write(self, source: Source, folder: Path) -> None:
        """Write both files.

        Raises:
            UserError: onnx or onnxruntime is not installed.
        """
        if missing := [name for name in ("onnx", "onnxruntime") if find_spec(name) is None]:
            raise UserError(f"--to onnx needs {' and '.join(missing)}: pip install 'genview[onnx]'.")
        with appearing(folder / "model.onnx") as temporary, warnings.catch_warnings():
            # By tracing: torch's newer exporter needs another package, takes ten seconds, and writes the paths of
            # this machine into the file. It warns of that, and of what a trace may fix; the comparison would show it.
            warnings.simplefilter("ignore")
            torch.onnx.export(
                source.backbone,
                (torch.rand(2, 3, source.size, source.size),),
                temporary,
                dynamo=False,
                opset_version=OPSET,
                input_names=["images"],
                output_names=["features"],
                dynamic_axes={"images": {0: "batch"}, "features": {0: "batch"}},
            )
        write_json(folder / "config.json", {"genview": record(source)})

    def read(self, source: Source, folder: Path) -> Features:  # noqa: ARG002  # the file has all
        """Let onnxruntime read it, on the CPU."""
        import onnx
        import onnxruntime

        onnx.checker.check_model(folder / "model.onnx", full_check=True)
        session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])

        def features(images: Tensor) -> Tensor:
            (found,) = session.run(["features"], {"images": images.numpy()})
            return torch.from_numpy(found)

        return features

    def snippet(self, source: Source) -> str:  # noqa: ARG002
        """Return lines for onnxruntime."""
        return (
            'session = onnxruntime.InferenceSession(f"{folder}/model.onnx")\n'
            '(features,) = session.run(["features"], {"images": images.numpy()})  # it normalises for itself\n'
        )
