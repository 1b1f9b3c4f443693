"""Object detection and instance segmentation: the backbone is fine-tuned as a part of a detector.

The papers' protocol (MoCo, He et al., CVPR 2020, section 4.2): Mask R-CNN (He et al., ICCV 2017) with a feature
pyramid, all layers fine-tuned, BatchNorm trained, the 1x schedule of Detectron2, COCO's average precision.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from genview.errors import UserError
from genview.evaluation.continuing import digest_of_file, digest_of_weights
from genview.evaluation.detection.coco import Annotated, check_masks, check_same_categories, pycocotools, read
from genview.evaluation.detection.data import Objects
from genview.evaluation.detection.model import Norms, Precision, detector
from genview.evaluation.detection.score import What, average_precision, detect
from genview.evaluation.detection.train import check_enough, train
from genview.evaluation.options import COUNT, POSITIVE, length, want, want_some, want_text
from genview.evaluation.subject import Subject
from genview.store import claim, write_bytes

__all__ = ["Detection"]

SCORED: tuple[tuple[str, What], ...] = (("box", "bbox"), ("mask", "segm"))


@dataclass(frozen=True)
class Detection:
    """Train a detector on one annotation file and score it on another; no choice is made on either.

    Attributes:
        train: annotations to learn, in COCO's instances format; images without a box are left out.
        test: annotations to score.
        images: folder of the training images.
        test_images: folder of the test images; `images` where None.
        masks: Mask R-CNN instead of Faster R-CNN.
        length: of the training. The 1x schedule is 90,000 steps of 16 images, 12.28 epochs of COCO's train2017;
            for another set it is as many epochs.
        batch: images in a step, all on one device, so that BatchNorm's statistics are those of all.
        rate: of SGD, at this batch; in proportion to it, as a rule: 0.02 for 16 images.
        momentum: of SGD.
        weight_decay: of all but norms.
        warmup: steps in which the rate rises; a tenth of the schedule where that is less.
        drops: shares of the schedule after which the rate is a tenth.
        norms: 'trained', as self-supervised backbones need, or 'frozen', which batches of fewer than 4 need.
        short: sides in pixels to which the shorter side is resized, one at random; the last one when scoring.
        longest: side in pixels that no image exceeds.
        width: channels of the pyramid; the box head has four times as many.
        precision: of backbone and pyramid; 'auto' is bfloat16 on GPUs that are made for it, else float32.

    Raises:
        UserError: a number is out of its range, there is no side, or `length` is no duration.
    """

    train: str
    test: str
    images: str
    kind: Literal["detection"] = "detection"
    test_images: str | None = None
    masks: bool = False
    length: str = "12.28 epochs"
    batch: int = 16
    rate: float = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    warmup: int = 1000
    drops: tuple[float, ...] = (2 / 3, 8 / 9)
    norms: Norms = "trained"
    short: tuple[int, ...] = (640, 672, 704, 736, 768, 800)
    longest: int = 1333
    width: int = 256
    precision: Precision = "auto"

    protocol: ClassVar[str] = "detection-1"

    def __post_init__(self) -> None:
        want_text(self.kind, self, length, "length")
        want_some(self.kind, self, "short")
        want(self.kind, self, COUNT, "batch", "short", "longest", "width")
        want(self.kind, self, POSITIVE, "rate")

    def look_ahead(self, subject: Subject) -> None:
        """See that the files fit, images lie where they are said to, and the backbone suits a detector.

        Raises:
            UserError: pycocotools is not installed, or one of these is not so.
        """
        pycocotools()
        learned, asked = self._annotated()
        check_enough(self._objects(learned, subject.seed), self)
        self._shown(asked)
        detector(subject.load(), self, len(learned.categories), subject.seed)

    def run(self, subject: Subject) -> Iterator[tuple[str, float]]:
        """Yield ('detection/box/ap', …), ap50 and ap75, and the same of 'detection/mask' with `masks`.

        `subject.folder` gets the detector, from which a training continues, and `detections.json`, what it found, in
        COCO's results format.

        Raises:
            UserError: pycocotools is not installed, files do not fit, or the backbone has no four stages.
        """
        pycocotools()
        learned, asked = self._annotated()
        backbone = subject.load()
        claim(subject.folder, {**self._identity(subject.seed), "backbone": digest_of_weights(backbone)})
        place = subject.folder / "detections.json"
        if not place.exists():
            objects, shown = self._objects(learned, subject.seed), self._shown(asked)
            model = detector(backbone, self, len(learned.categories), subject.seed)
            train(model, objects, self, subject.reading, subject.seed, subject.folder)
            categories = {label: category for category, label in learned.labels.items()}
            found = detect(model, shown, categories, subject.reading)
            write_bytes(place, json.dumps(found).encode())
        content = _detections(place)
        for name, what in SCORED if self.masks else SCORED[:1]:
            for measure, value in average_precision(asked, content["found"], content["seen"], what).items():
                yield f"detection/{name}/{measure}", value

    def _annotated(self) -> tuple[Annotated, Annotated]:
        learned, asked = read(Path(self.train)), read(Path(self.test))
        check_same_categories(learned, asked)
        if self.masks:
            check_masks(learned)
            check_masks(asked)
        return learned, asked

    def _objects(self, learned: Annotated, seed: int) -> Objects:
        """The images to learn on."""
        return Objects(learned, Path(self.images), seed=seed, masks=self.masks, empty=False)

    def _shown(self, asked: Annotated) -> Objects:
        """The images to be scored on."""
        return Objects(asked, Path(self.test_images or self.images))

    def _identity(self, seed: int) -> dict[str, Any]:
        """What a detector depends on, beside the backbone."""
        digests = {name: digest_of_file(Path(file)) for name, file in (("train", self.train), ("test", self.test))}
        return {"protocol": self.protocol, **asdict(self), **digests, "seed": seed}


def _detections(place: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(place.read_text())
        return {"found": content["found"], "seen": content["seen"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{place} is damaged ({error}). Delete it to look for objects anew.") from error
