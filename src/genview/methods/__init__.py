"""Self-supervised methods, one readable screen each. A new one is a file and a place in this union."""

from genview.methods.barlow_twins import BarlowTwins
from genview.methods.byol import BYOL
from genview.methods.dino import DINO
from genview.methods.method import Learner, Losses
from genview.methods.moco_v2 import MoCoV2
from genview.methods.moco_v3 import MoCoV3
from genview.methods.multi_positive import MultiPositive
from genview.methods.simclr import SimCLR
from genview.methods.simsiam import SimSiam
from genview.methods.swav import SwAV
from genview.methods.vicreg import VICReg

Method = MoCoV2 | MoCoV3 | SimCLR | BYOL | SimSiam | SwAV | DINO | BarlowTwins | VICReg | MultiPositive

__all__ = [
    "BYOL",
    "DINO",
    "BarlowTwins",
    "Learner",
    "Losses",
    "Method",
    "MoCoV2",
    "MoCoV3",
    "MultiPositive",
    "SimCLR",
    "SimSiam",
    "SwAV",
    "VICReg",
]
