"""The keys of sharding plans, and how each is built."""

from pathlib import Path
from typing import Any

from distsam.errors import ArgumentError, InputError
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


class PinnedKeys(Section):
    """plan: a file."""

    mode: int = Field(default=0, ge=0, description="Mode of the tensor whose rows, with their data, the ranks divide.")


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


def build_pinned(sharding: Any, bounds: tuple[int, ...] | None) -> Any:
    """The plan that a file holds.

    Raises:
        ArgumentError: it cannot be read, or holds no plan.
    """
    from distsam.sharding import Pinned, ShardPlan

    path = Path(sharding.plan)
    try:
        made = ShardPlan.from_json(path.read_text(encoding="utf-8"), sharding.plan)
    except OSError as error:
        problem = f"{path}: cannot be read ({error.strerror}); save one with distsam plan --save"
        raise ArgumentError("plan", problem) from None
    except UnicodeDecodeError:
        raise ArgumentError("plan", f"{path}: is no text, so no plan") from None
    except InputError as error:
        raise ArgumentError("plan", str(error)) from None
    return Pinned(made, sharding.plan, sharding.mode, bounds)
