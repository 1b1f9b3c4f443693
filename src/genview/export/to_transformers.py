"""transformers' own ResNets and Vision Transformers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor

from genview.encoders.naming import TRANSFORMERS_RESNET, TRANSFORMERS_VIT, TRANSFORMERS_VIT_5, Naming
from genview.encoders.strict import load_strictly
from genview.errors import UserError
from genview.export.target import Features, Source, of_normalised, record, statistics_line
from genview.export.vit import plain_vit


class ToTransformers:
    """config.json, model.safetensors and preprocessor_config.json, for `AutoModel.from_pretrained(FOLDER)`."""

    library = "transformers"
    what = "transformers' layout of the Hugging Face hub"
    imports = "import torch\nfrom transformers import AutoModel\n"

    def write(self, source: Source, folder: Path) -> None:
        """Let transformers write its model and its image processor.

        Raises:
            UserError: transformers has no such network, or is not installed.
        """
        model, naming = _created(source)
        state = naming.into(source.backbone.net.state_dict())
        load_strictly(model, state, f"transformers has no network like this '{source.settings.name}'; use --to timm")
        model.config.genview = record(source)
        with _quiet():
            model.save_pretrained(folder)
        _processor(source).save_pretrained(folder)

    def read(self, source: Source, folder: Path) -> Features:
        """Let transformers read it, with nothing missing and nothing left."""
        from transformers import AutoModel

        with _quiet():
            model, report = AutoModel.from_pretrained(folder, output_loading_info=True, **_without_pooler(source))
        wrong = [name for sort in ("missing_keys", "unexpected_keys", "mismatched_keys") for name in report[sort]]
        if wrong:
            raise UserError(f"transformers does not read back what it wrote: {', '.join(map(str, wrong))}.")
        pooled = isinstance(source.backbone.net, ResNet)

        def features(images: Tensor) -> Tensor:
            out = model(images)
            found: Tensor = out.pooler_output.flatten(1) if pooled else out.last_hidden_state[:, 0]
            return found

        return of_normalised(source, features)

    def snippet(self, source: Source) -> str:
        """Return lines for transformers."""
        pooled = isinstance(source.backbone.net, ResNet)
        more = "" if pooled else ", add_pooling_layer=False"
        found = ".pooler_output.flatten(1)" if pooled else ".last_hidden_state[:, 0]"
        return (
            f"{statistics_line(source.settings)}"
            f"model = AutoModel.from_pretrained(folder{more}).eval()\n"
            f"features = model((images - mean) / std){found}\n"
        )


def _created(source: Source) -> tuple[Any, Naming]:
    """Return transformers' model, freshly initialised, and how it names its weights."""
    if find_spec("transformers") is None:
        raise UserError("--to huggingface needs the package transformers: pip install 'genview[unclip]'.")
    import transformers

    if isinstance(source.backbone.net, ResNet):
        return transformers.ResNetModel(_resnet_config(source)).eval(), TRANSFORMERS_RESNET
    plain = plain_vit(source, "transformers")
    config = transformers.ViTConfig(
        image_size=plain.size,
        patch_size=plain.patch,
        num_hidden_layers=plain.depth,
        num_attention_heads=plain.heads,
        hidden_size=plain.width,
        intermediate_size=plain.hidden,
        layer_norm_eps=plain.epsilon,
    )
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    old = TRANSFORMERS_VIT.also in model.state_dict()
    return model, TRANSFORMERS_VIT if old else TRANSFORMERS_VIT_5


def _resnet_config(source: Source) -> Any:
    import transformers

    if source.settings.stem_stride != 4:
        raise UserError(
            f"transformers' ResNets have the stem of ImageNet alone, and this one has stem_stride "
            f"{source.settings.stem_stride}. Use --to timm, whose folder transformers reads too."
        )
    net = source.backbone.net
    return transformers.ResNetConfig(
        embedding_size=net.bn1.num_features,
        hidden_sizes=[level["num_chs"] for level in net.feature_info[1:]],
        depths=[len(stage) for stage in (net.layer1, net.layer2, net.layer3, net.layer4)],
        layer_type="bottleneck" if isinstance(net.layer1[0], Bottleneck) else "basic",
    )


def _processor(source: Source) -> Any:
    """Prepare images as genview does: the shortest side resized to the size (bicubic), the centre cropped."""
    from transformers import CLIPImageProcessor

    return CLIPImageProcessor(
        size={"shortest_edge": source.size},
        crop_size={"height": source.size, "width": source.size},
        image_mean=list(source.settings.mean),
        image_std=list(source.settings.std),
    )


def _without_pooler(source: Source) -> dict[str, bool]:
    """ViTModel has a layer after the class token, which no method here trains."""
    return {} if isinstance(source.backbone.net, ResNet) else {"add_pooling_layer": False}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars that transformers shows for files of any size."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
