"""How do the cores move? SAM's ascents, the rescales DAS and BAR, around any torch optimizer, guarded and measured."""

from distsam.optim.als import ALS
from distsam.optim.ascent import SCOPES, Ascent, GradientAscent, Sweep
from distsam.optim.auto_strength import auto_bar_alpha, auto_das_alpha, auto_rho
from distsam.optim.bar import BAR
from distsam.optim.das import DAS
from distsam.optim.rescale import Rescale, Rescaling
from distsam.optim.sam import SAM
from distsam.optim.two_pass import TwoPass
from distsam.optim.wrapper import OnePass, Plain, Wrapper

__all__ = [
    "ALS",
    "BAR",
    "DAS",
    "SAM",
    "SCOPES",
    "Ascent",
    "GradientAscent",
    "OnePass",
    "Plain",
    "Rescale",
    "Rescaling",
    "Sweep",
    "TwoPass",
    "Wrapper",
    "auto_bar_alpha",
    "auto_das_alpha",
    "auto_rho",
]
