"""Where do the weights live? World, mesh, plan, and the collectives."""

from distsam.sharding.apply import shard
from distsam.sharding.gathered import discard_pass
from distsam.sharding.ownership import LocalPieces, local_tensor
from distsam.sharding.plan import ShardPlan, plan_shards
from distsam.sharding.replicate import averagers_of
from distsam.sharding.world import PLANS, World, close_world, make_mesh, open_world

__all__ = [
    "PLANS",
    "LocalPieces",
    "ShardPlan",
    "World",
    "averagers_of",
    "close_world",
    "discard_pass",
    "local_tensor",
    "make_mesh",
    "open_world",
    "plan_shards",
    "shard",
]
