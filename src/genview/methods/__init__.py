"""Self-supervised methods, one readable screen each. A new one is a file and a place in this union."""

from genview.methods.method import Learner, Losses
from genview.methods.moco_v2 import MoCoV2
from genview.methods.simsiam import SimSiam

Method = MoCoV2 | SimSiam

__all__ = ["Learner", "Losses", "Method", "MoCoV2", "SimSiam"]
