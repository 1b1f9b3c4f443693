"""Quality of pairs: how alike foregrounds and backgrounds of two views are, and the weight that follows from it."""

from genview.quality.cached import CachedWeigher
from genview.quality.caching import Caching, cache
from genview.quality.exact import ExactWeigher
from genview.quality.masks import MaskedWeigher, gather_masks
from genview.quality.settings import CachedQuality, ExactQuality, MaskQuality, QualitySettings, with_kind
from genview.quality.similarity import Quality, pair_quality
from genview.quality.weighting import Weighting

__all__ = [
    "CachedQuality",
    "CachedWeigher",
    "Caching",
    "ExactQuality",
    "ExactWeigher",
    "MaskQuality",
    "MaskedWeigher",
    "Quality",
    "QualitySettings",
    "Weighting",
    "cache",
    "gather_masks",
    "pair_quality",
    "with_kind",
]
