"""The whole experiment: load it, and do its stages."""

from genview.experiment.cost import cost
from genview.experiment.fit import FitExperiment, fit_generator
from genview.experiment.load import load, parse, to_yaml
from genview.experiment.making import analyse_images, generate_views, take_views
from genview.experiment.run import run_all
from genview.experiment.schema import Experiment
from genview.experiment.stages import Stages

__all__ = [
    "Experiment",
    "FitExperiment",
    "Stages",
    "analyse_images",
    "cost",
    "fit_generator",
    "generate_views",
    "load",
    "parse",
    "run_all",
    "take_views",
    "to_yaml",
]
