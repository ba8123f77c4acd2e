"""The plans, one file each; a new one adds its line to PLANS."""

from collections.abc import Callable

from distsam.errors import ArgumentError
from distsam.sharding.plan import Plan
from distsam.sharding.plans.bond import Bond
from distsam.sharding.plans.fsdp import Fsdp
from distsam.sharding.plans.mode import Mode
from distsam.sharding.plans.pinned import Pinned
from distsam.sharding.plans.replicate import Replicate

# Word -> how to build it, with its defaults.
PLANS: dict[str, Callable[[], Plan]] = {"replicate": Replicate, "fsdp": Fsdp, "bond": Bond, "mode": Mode}


def plan_named(name: str) -> Plan:
    """The plan of that name, with its defaults.

    Raises:
        ArgumentError: there is none.
    """
    if name not in PLANS:
        raise ArgumentError("plan", f"{name}: unknown plan; use one of {', '.join(PLANS)}")
    return PLANS[name]()


__all__ = ["PLANS", "Bond", "Fsdp", "Mode", "Pinned", "Replicate", "plan_named"]
