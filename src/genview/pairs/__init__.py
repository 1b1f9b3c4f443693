"""Pairs of views and the recipes that make them."""

from genview.pairs.augment import RecipeName, ViewRecipe, recipe
from genview.pairs.dataset import NOT_GENERATED, FindView, PairBatch, Pairs, PairSettings, collate
from genview.pairs.external import ExternalViews

__all__ = [
    "NOT_GENERATED",
    "ExternalViews",
    "FindView",
    "PairBatch",
    "PairSettings",
    "Pairs",
    "RecipeName",
    "ViewRecipe",
    "collate",
    "recipe",
]
