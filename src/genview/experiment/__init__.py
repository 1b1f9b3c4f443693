"""The whole experiment: load it, and do its stages."""

from genview.experiment.cost import cost
from genview.experiment.fit import FitExperiment, fit_generator
from genview.experiment.grid import Grid, Study, is_study, load_study
from genview.experiment.load import load, parse, to_yaml
from genview.experiment.making import analyse_images, generate_views, take_views
from genview.experiment.run import run_all
from genview.experiment.schema import Experiment
from genview.experiment.stages import Stages
from genview.experiment.study import run_study
from genview.experiment.study_cost import study_cost

__all__ = [
    "Experiment",
    "FitExperiment",
    "Grid",
    "Stages",
    "Study",
    "analyse_images",
    "cost",
    "fit_generator",
    "generate_views",
    "is_study",
    "load",
    "load_study",
    "parse",
    "run_all",
    "run_study",
    "study_cost",
    "take_views",
    "to_yaml",
]
