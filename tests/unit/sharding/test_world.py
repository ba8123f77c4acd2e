"""Who am I: read from torchrun's variables, from Slurm's, or alone."""

import pytest
import torch

import distsam
from distsam.environment import available_bytes, free_here, place, processes_here
from distsam.errors import InputError
from distsam.sharding import Fsdp, Layout, loss_weight_of, make_layout, open_world

TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1"}
SLURM_STEP = {"SLURM_PROCID": "5", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, (0, 1, 0)),
        (TORCHRUN, (3, 4, 1)),
        (SLURM_STEP, (5, 8, 2)),
        ({**SLURM_STEP, **TORCHRUN}, (3, 4, 1)),
        # a plain start inside an allocation: tasks were asked for, but this is none of them
        ({"SLURM_NTASKS": "8", "SLURM_JOB_ID": "7"}, (0, 1, 0)),
        # the same where salloc's shell is a step of its own
        ({**SLURM_STEP, "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_STEP_NUM_TASKS": "1"}, (0, 1, 0)),
    ],
)
def test_the_place_in_the_run_is_read_from_the_launcher(env: dict[str, str], expected: tuple[int, int, int]) -> None:
    assert place(env)[:3] == expected


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, 1),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}, 2),
        ({**SLURM_STEP, "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NODEID": "1"}, 4),
        ({**SLURM_STEP, "SLURM_STEP_TASKS_PER_NODE": "3(x2),2", "SLURM_NODEID": "2"}, 2),
        ({**SLURM_STEP, "SLURM_TASKS_PER_NODE": "8", "SLURM_NODEID": "0"}, 8),
        ({"SLURM_NTASKS": "8", "SLURM_TASKS_PER_NODE": "8"}, 1),  # a plain start inside an allocation
    ],
)
def test_the_processes_that_share_a_machine_are_counted(env: dict[str, str], expected: int) -> None:
    """Four ranks of one machine, each with half of its memory asked for, were let in."""
    assert processes_here(env) == expected


def test_each_of_them_has_its_share_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*SLURM_STEP, *TORCHRUN):
        monkeypatch.delenv(name, raising=False)
    alone = available_bytes()
    for name, value in {**TORCHRUN, "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    # What is free moves while this runs; a half would be none of them.
    assert alone / 6 < available_bytes() < alone / 3
    assert free_here(2**30) == "1 GiB are free here for each of 4 ranks"


def test_without_scontrol_a_srun_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in {**SLURM_STEP, "SLURM_STEP_NODELIST": "gpu[01-02]", "PATH": "/nowhere"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"MASTER_ADDR: is not set.*gpu\[01-02\]"):
        open_world("cpu")


def test_alone_there_is_no_process_group_and_no_mesh(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*TORCHRUN, *SLURM_STEP):
        monkeypatch.delenv(name, raising=False)
    world = open_world("cpu")
    assert (world.rank, world.world_size, world.device.type) == (0, 1, "cpu")
    assert not torch.distributed.is_initialized()
    layout = make_layout(world, Fsdp())
    assert layout.mesh is None
    for alone in (layout, Layout.alone("cpu")):
        assert (alone.data_rank, alone.data_size, alone.is_first_copy, alone.loss_weight) == (0, 1, True, 1.0)
        assert alone.data_group is None
    assert loss_weight_of(distsam.TensorNetwork(distsam.cp((4, 5), 2)).parameters()) == 1.0


def test_a_model_without_a_mesh_is_left_as_it_is() -> None:
    model = distsam.TensorNetwork(distsam.cp((4, 5), 2))
    before = list(model.parameters())
    assert distsam.shard(model, None, "fsdp") is model
    assert all(a is b for a, b in zip(before, model.parameters(), strict=True))


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(InputError, match=r"device: tpu"):
        open_world("tpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match="no CUDA device"):
        open_world("cuda")


def test_ranks_of_a_machine_share_its_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for local_rank, expected in ((0, "cuda:0"), (1, "cuda:1"), (3, "cuda:1")):
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "1")
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))
        assert str(open_world("auto").device) == expected
