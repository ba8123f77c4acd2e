"""The keys of sharding plans, and how each is built."""

from typing import Any

from distsam.train.seams import Field, Section


class ReplicateKeys(Section):
    """plan: replicate takes no keys of its own."""


class FsdpKeys(Section):
    """plan: fsdp."""

    replicas: int = Field(default=1, ge=1, description="Copies of the sharded model; must divide the ranks.")


def build_replicate(sharding: Any) -> Any:
    """Every weight whole on every rank."""
    from distsam.sharding import Replicate

    return Replicate()


def build_fsdp(sharding: FsdpKeys) -> Any:
    """Weights cut over the ranks by FSDP2."""
    from distsam.sharding import Fsdp

    return Fsdp(replicas=sharding.replicas)
