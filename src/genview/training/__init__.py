"""Pretraining: optimizer, schedule, state and the loop."""

from genview.training.pretrain import TrainSettings, plan_of, pretrain

__all__ = ["TrainSettings", "plan_of", "pretrain"]
