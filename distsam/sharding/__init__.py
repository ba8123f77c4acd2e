"""Where do the weights live? World, mesh, plan, and the collectives."""

from distsam.sharding.apply import shard
from distsam.sharding.ownership import LocalPieces, Pieces, local_tensor
from distsam.sharding.plan import ShardPlan, plan_shards
from distsam.sharding.world import PLANS, World, close_world, make_mesh, open_world

__all__ = [
    "PLANS",
    "LocalPieces",
    "Pieces",
    "ShardPlan",
    "World",
    "close_world",
    "local_tensor",
    "make_mesh",
    "open_world",
    "plan_shards",
    "shard",
]
