"""How like its source a view is, and how unlike one another the draws of an image are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from genview.foreground import Looking
from genview.store import claim, read_table, write_table

SOURCES = "sources"
"""The folder, within that of the views, of source embeddings in an encoder that is not the generator's."""


def diversity(embedding: Tensor, made: np.ndarray, draws: int) -> np.ndarray:
    """Return the mean cosine distance of each view to the other made draws of its image; NaN where it has none.

    Args:
        embedding: M×E, of length one; all `draws` of an image side by side.
        made: M flags; other views have no diversity and count for none.
        draws: views an image.

    Returns:
        M values in [0, 2], float32.
    """
    kept = torch.from_numpy(made).view(-1, draws)
    grouped = embedding.view(len(kept), draws, -1).double().masked_fill(~kept[..., None], 0)
    others = kept.sum(dim=1, keepdim=True) - 1
    alike = (grouped * (grouped.sum(dim=1, keepdim=True) - grouped)).sum(dim=2) / others
    known = kept & (others > 0)
    return torch.where(known, (1 - alike).clamp(0, 2), torch.nan).float().reshape(-1).numpy()


def embed_sources(looking: Looking, analysis: Path, folder: Path, *, identity: Mapping[str, object]) -> None:
    """Write the embeddings of the analysed images in another encoder, part by part like the analysis itself.

    An image that cannot be read any more has NaN, and so have the scores of its views.

    Raises:
        UserError: the folder holds embeddings of another encoder or other images.
    """
    claim(folder, {**identity, "encoder": looking.encoder.name})
    for path in sorted(analysis.glob("part-*.parquet")):
        if not (folder / path.name).exists():
            keys = read_table(path, ["key"])["key"]
            embedding = _embeddings(looking, path, keys)
            write_table(folder / path.name, {"key": keys.astype(str), "embedding": embedding})


def _embeddings(looking: Looking, path: Path, keys: np.ndarray) -> np.ndarray:
    """Return the embeddings, half precision, of a part's images; they lie between known places of the source."""
    number, size = int(path.stem.rpartition("-")[2]), looking.settings.part
    total = len(looking.source)
    wanted = {key: place for place, key in enumerate(keys)}
    near = range(number * size, min((number + 1) * size, total))
    indices = [i for i in near if looking.source.key(i) in wanted]
    rows: dict[int, np.ndarray] = {}
    for found, _, encoded in looking.encode("sources", indices, of=total) if indices else ():
        for index, row in zip(found, encoded.embedding.half().cpu().numpy(), strict=True):
            rows[wanted[looking.source.key(index)]] = row
    blank = torch.zeros(1, 3, looking.encoder.size, looking.encoder.size, device=looking.device)
    embedding = np.full((len(keys), looking.encoder.encode(blank).embedding.shape[1]), np.nan, dtype=np.float16)
    for place, row in rows.items():
        embedding[place] = row
    return embedding
