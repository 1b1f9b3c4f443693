"""Export: a backbone in the layouts of timm, torchvision, transformers and ONNX, checked, with a model card."""

from genview.export.card import Facts, usage
from genview.export.licences import licence_of
from genview.export.target import Agreement, Source, Target
from genview.export.write import TARGETS, TargetName, export_to

__all__ = [
    "TARGETS",
    "Agreement",
    "Facts",
    "Source",
    "Target",
    "TargetName",
    "export_to",
    "licence_of",
    "usage",
]
