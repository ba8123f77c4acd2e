"""How do the cores move? SAM, DAS and BAR around any torch optimizer, guarded and measured."""

from distsam.optim.rescale import BAR, DAS
from distsam.optim.sam import SAM, SCOPES
from distsam.optim.wrapper import OnePass, Plain, Wrapper

__all__ = ["BAR", "DAS", "SAM", "SCOPES", "OnePass", "Plain", "Wrapper"]
