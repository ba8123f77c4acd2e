"""Placement at 1,024 ranks on the fake backend: shapes only, never numbers."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

import distsam
from distsam.sharding import Fsdp, World, make_layout

WORLD_SIZE = 1024


@pytest.fixture
def fake_world() -> Iterator[World]:
    dist.init_process_group("fake", rank=0, world_size=WORLD_SIZE)
    yield World(0, WORLD_SIZE, 0, torch.device("cpu"))
    dist.destroy_process_group()


@pytest.mark.parametrize(("replicas", "shard_shape"), [(1, (1, 16)), (64, (64, 16))])
def test_every_rank_holds_an_even_piece_of_the_widest_dim(
    fake_world: World, replicas: int, shard_shape: tuple[int, int]
) -> None:
    network = distsam.TensorNetwork(distsam.cp((1024, 2048), 16))
    distsam.shard(network, make_layout(fake_world, Fsdp(replicas)).mesh, "fsdp")
    first, second = network.cores
    assert isinstance(first, DTensor)
    assert first.shape == (1024, 16)
    assert tuple(first.to_local().shape) == shard_shape
    assert tuple(second.to_local().shape) == (2 * shard_shape[0], 16)


def test_a_core_too_small_for_the_shard_axis_is_whole_beside_sharded_ones(fake_world: World) -> None:
    network = distsam.TensorNetwork(distsam.tucker((1024, 6, 11), (8, 6, 8)))
    distsam.shard(network, make_layout(fake_world, Fsdp()).mesh, "fsdp")
    assert [isinstance(core, DTensor) for core in network.cores] == [False, True, False, False]
