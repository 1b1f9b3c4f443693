"""Views of images, pairs of them, and the recipes that make them."""

from genview.pairs.augment import Look, Looks, ViewRecipe
from genview.pairs.dataset import NOT_GENERATED, Crops, FindView, PairBatch, Pairs, PairSettings, collate
from genview.pairs.external import ExternalViews
from genview.pairs.recipes import Recipe, RecipeName, recipe
from genview.pairs.same_class import SameClassViews

__all__ = [
    "NOT_GENERATED",
    "Crops",
    "ExternalViews",
    "FindView",
    "Look",
    "Looks",
    "PairBatch",
    "PairSettings",
    "Pairs",
    "Recipe",
    "RecipeName",
    "SameClassViews",
    "ViewRecipe",
    "collate",
    "recipe",
]
