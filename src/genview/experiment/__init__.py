"""The whole experiment: load it, and do its stages."""

from genview.experiment.cost import cost
from genview.experiment.fit import FitExperiment, fit_generator
from genview.experiment.load import load, parse, to_yaml
from genview.experiment.schema import Experiment, QualitySettings
from genview.experiment.stages import Stages, run_all

__all__ = [
    "Experiment",
    "FitExperiment",
    "QualitySettings",
    "Stages",
    "cost",
    "fit_generator",
    "load",
    "parse",
    "run_all",
    "to_yaml",
]
