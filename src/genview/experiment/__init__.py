"""The whole experiment: load it, and do its stages."""

from genview.experiment.cost import cost
from genview.experiment.examine import Examination, examination_cost, examine
from genview.experiment.exporting import Wish, arguments, export_backbone
from genview.experiment.fit import FitExperiment
from genview.experiment.fit_choice import for_folder
from genview.experiment.fit_lora import LoraExperiment
from genview.experiment.fit_verb import Fitting, fit_generator, planned
from genview.experiment.grid import Grid, Study, load_study
from genview.experiment.load import load, parse, read_yaml, to_yaml, verb_of
from genview.experiment.making import analyse_images, generate_views, take_views
from genview.experiment.reporting import report_runs
from genview.experiment.run import run_all
from genview.experiment.schema import Experiment
from genview.experiment.stages import Stages
from genview.experiment.study import refuse_others, run_study
from genview.experiment.study_cost import study_cost

__all__ = [
    "Examination",
    "Experiment",
    "FitExperiment",
    "Fitting",
    "Grid",
    "LoraExperiment",
    "Stages",
    "Study",
    "Wish",
    "analyse_images",
    "arguments",
    "cost",
    "examination_cost",
    "examine",
    "export_backbone",
    "fit_generator",
    "for_folder",
    "generate_views",
    "load",
    "load_study",
    "parse",
    "planned",
    "read_yaml",
    "refuse_others",
    "report_runs",
    "run_all",
    "run_study",
    "study_cost",
    "take_views",
    "to_yaml",
    "verb_of",
]
