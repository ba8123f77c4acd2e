"""FSDP2 may exchange the storage of a shard at any time (`Module.to`, loading): weights still come back."""

import torch
from rank_cases import build, full
from rank_pool import RankPool

from distsam.sharding import local_tensor


def exchange_storage(is_inside: bool) -> list[bool]:
    """Whether each full weight is back bit for bit after a perturbation; storage is exchanged inside or before."""
    model, optimizer, closure = build("fsdp", 1, torch.float32, "sam")
    optimizer.step(closure)
    before = [full(p) for p in model.parameters()]

    def exchange() -> None:
        for p in model.parameters():
            if hasattr(p, "_local_tensor"):
                p._local_tensor = local_tensor(p).detach().clone()

    if not is_inside:
        exchange()
    closure()
    with optimizer.perturbed():
        moved = [full(p) for p in model.parameters()]
        if is_inside:
            exchange()
    after = [full(p) for p in model.parameters()]
    assert not any((m == w).all() for m, w in zip(moved, before, strict=True))
    return [bool((a == w).all()) for a, w in zip(after, before, strict=True)]


def test_weights_come_back_to_where_a_shard_is_stored_by_now(two_ranks: RankPool) -> None:
    for is_inside in (False, True):
        for answer in two_ranks.run(exchange_storage, is_inside):
            assert all(answer)
