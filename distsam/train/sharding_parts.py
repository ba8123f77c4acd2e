"""The keys of sharding plans, and how each is built."""

from typing import Any

from distsam.train.seams import Field, Section


class ReplicateKeys(Section):
    """plan: replicate takes no keys of its own."""


class FsdpKeys(Section):
    """plan: fsdp."""

    replicas: int = Field(default=1, ge=1, description="Copies of the sharded model; must divide the ranks.")


class BondKeys(Section):
    """plan: bond, alone or in a sum."""

    bond_ranks: int | None = Field(
        default=None, ge=2, description="Ranks that share the bonds of each core and see the same data; null: all."
    )


class ModeKeys(Section):
    """plan: mode, alone or in a sum."""

    mode: int = Field(default=0, ge=0, description="Mode of the tensor whose rows, with their data, the ranks divide.")
    mode_ranks: int | None = Field(default=None, ge=2, description="Ranks that divide the rows; null: all.")


def build_replicate(sharding: Any) -> Any:
    """Every weight whole on every rank."""
    from distsam.sharding import Replicate

    return Replicate()


def build_fsdp(sharding: FsdpKeys) -> Any:
    """Weights cut over the ranks by FSDP2."""
    from distsam.sharding import Fsdp

    return Fsdp(replicas=sharding.replicas)


def build_mode(sharding: ModeKeys, others: Any, bounds: tuple[int, ...] | None) -> Any:
    """The rows of one mode divided over the ranks."""
    from distsam.sharding import Mode

    return Mode(sharding.mode, sharding.mode_ranks, bounds, others)


def build_bond(sharding: BondKeys, others: Any) -> Any:
    """Cores cut along bonds over some of the ranks; the others as their own plan has it."""
    from distsam.sharding import Bond

    return Bond(sharding.bond_ranks, others)
