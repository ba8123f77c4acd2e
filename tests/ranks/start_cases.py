"""What runs on every rank: models whose networks each rank draws in pieces."""

import numpy as np
import torch
from plan_cases import PLANS, Zoo, layout_of
from rank_cases import full

import distsam
from distsam.sharding import local_tensor, place_model
from distsam.tensornet import deferred_draws, initial


def start_in_pieces(plan: str, exact_elements: int, dtype: str) -> dict[str, np.ndarray]:
    """Every parameter at the start, drawn in pieces on the plan; alone, drawn whole and at once."""
    kept, initial.EXACT_ELEMENTS = initial.EXACT_ELEMENTS, exact_elements
    try:
        if not torch.distributed.is_initialized():
            return {name: full(p) for name, p in Zoo(getattr(torch, dtype)).named_parameters()}
        with deferred_draws():
            model = Zoo(getattr(torch, dtype))
        assert all(core.is_meta for network in model.networks.values() for core in network.cores)
        layout = layout_of(plan)
        distsam.shard(model, layout.mesh, place_model(PLANS[plan](), model, layout.axes))
    finally:
        initial.EXACT_ELEMENTS = kept
    return {name: full(p) for name, p in model.named_parameters()}


def start_without_numbers(plan: str) -> tuple[float, bool]:
    """The largest number in the cores of a model that was not to be drawn, and whether a bias of it was."""
    with deferred_draws():
        model = Zoo(torch.float64)
    layout = layout_of(plan)
    distsam.shard(model, layout.mesh, place_model(PLANS[plan](), model, layout.axes), draws=False)
    cores = [local_tensor(core.detach()) for network in distsam.core_networks(model) for core in network.cores]
    largest = max(float(core.abs().max()) for core in cores if core.numel())
    return largest, bool((model.scale.detach() == 1).all())
