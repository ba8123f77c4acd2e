"""Where do the weights live? World, layout, plan, and the collectives."""

from distsam.sharding.accumulate import accumulating
from distsam.sharding.apply import place_model, shard
from distsam.sharding.buckets import Reduction
from distsam.sharding.layout import Layout, loss_weight_of, make_layout
from distsam.sharding.local import is_sharded, local_tensor, placed_like
from distsam.sharding.ownership import LocalPieces, PausedPieces, Pieces, are_finite, pausable
from distsam.sharding.plan import Axes, NetworkWeights, Plan, ShardPlan
from distsam.sharding.plans import PLANS, Bond, Fsdp, Mode, Pinned, Replicate, plan_named
from distsam.sharding.ranges import with_ranges
from distsam.sharding.world import World, close_world, open_world

__all__ = [
    "PLANS",
    "Axes",
    "Bond",
    "Fsdp",
    "Layout",
    "LocalPieces",
    "Mode",
    "NetworkWeights",
    "PausedPieces",
    "Pieces",
    "Pinned",
    "Plan",
    "Reduction",
    "Replicate",
    "ShardPlan",
    "World",
    "accumulating",
    "are_finite",
    "close_world",
    "is_sharded",
    "local_tensor",
    "loss_weight_of",
    "make_layout",
    "open_world",
    "pausable",
    "place_model",
    "placed_like",
    "plan_named",
    "shard",
    "with_ranges",
]
