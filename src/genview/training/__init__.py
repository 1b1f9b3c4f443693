"""Pretraining: optimizer, schedule, devices, state and the loop."""

from genview.training.pretrain import pretrain
from genview.training.settings import TrainSettings, plan_of

__all__ = ["TrainSettings", "plan_of", "pretrain"]
