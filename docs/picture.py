"""Draw docs/views.png: photographs that ship with scikit-image, and their views by the model inside the package.

    python docs/picture.py

From left to right: the photograph at 64 px, then levels 0, 100, 200, 300 and 400.
"""

from pathlib import Path

import torch
from PIL import Image
from skimage import data
from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

from genview.generators import EmbeddedSettings
from genview.images import square

PHOTOGRAPHS = (data.astronaut, data.chelsea, data.coffee, data.rocket)
LEVELS = (0, 100, 200, 300, 400)

photographs = torch.stack([pil_to_tensor(square(Image.fromarray(found()), 64)) for found in PHOTOGRAPHS])
generator = EmbeddedSettings(size=64).load("cpu")
condition = generator.encoder.encode(photographs / 255).embedding
seeds, guidance = range(len(photographs)), torch.ones(len(photographs))
views = [generator.sample(condition, torch.full((len(photographs),), level), guidance, seeds) for level in LEVELS]
sheet = torch.cat([torch.cat(list(column), dim=1) for column in (photographs, *views)], dim=2)
picture = to_pil_image(sheet)
picture.resize((2 * picture.width, 2 * picture.height), Image.Resampling.NEAREST).save(
    Path(__file__).parent / "views.png"
)
