"""What `distsam plan` counts up to 1,024 ranks, against closed formulas, and what counting takes."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.utils._pytree import tree_map_only

from distsam.errors import InputError
from distsam.sharding import Layout
from distsam.sharding.buckets import EXACT
from distsam.sharding.cost import collectives_of, empty_pieces, memory_of
from distsam.sharding.fake_world import fake_world
from distsam.train.build import build_parts, build_task
from distsam.train.config import Config
from distsam.train.config_file import load_config
from distsam.train.dry_run import dry_run, measure_step, weights_of
from distsam.train.forecast import Forecast, extrapolate
from distsam.train.ledger import Ledger

# 1,024 ranks cut the first core alone; with so many parameters gradients do not travel with the numbers of a pass.
LARGE = """
data: {source: lowrank, equation: "ar,br,cr->abc", sizes: {a: 2048, b: 16, c: 32, r: 2}, noise: 0.1, observed: 0.5}
network: {format: tt, bond_dim: [64, 32]}
optim: {method: sam, base: adam, lr: 0.01}
train: {steps: 20, batch_size: 4096}
"""
# What is promised of the command on two cores.
LIMIT_S, LIMIT_BYTES = 60, 2**30
MEASURED = """
import json, sys, time
start = time.perf_counter()
from distsam.train.config_file import load_config
from distsam.train.dry_run import dry_run, measure_step, weights_of
found = dry_run(load_config(sys.argv[1], ["sharding.plan=fsdp"]), 1024, 5)
# Not of getrusage, whose largest is at first that of the process which started this one.
[peak] = [line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(json.dumps([time.perf_counter() - start, 1024 * int(peak), found.num_simulated]))
"""


def config(folder: Path, *overrides: str) -> Config:
    path = folder / "large.yaml"
    path.write_text(LARGE)
    return load_config(path, [f"run.dir={folder / 'run'}", *overrides])


def assert_equals_formulas(found: Forecast) -> None:
    num_passes = found.step.num_passes
    assert found.memory == memory_of(found.weights, found.plan, found.rank, found.state, num_passes)
    expected = collectives_of(found.weights, found.plan, found.step, found.rank)
    assert Counter(found.collectives) == Counter(expected)


@pytest.mark.parametrize("world_size", [1, 2, 4, 64, 1024])
@pytest.mark.parametrize("plan", ["replicate", "fsdp"])
def test_formulas_equal_the_step_that_was_run(tmp_path: Path, plan: str, world_size: int) -> None:
    found = dry_run(config(tmp_path, f"sharding.plan={plan}"), world_size, world_size - 1)
    assert_equals_formulas(found)
    # Stored pieces are filled up to equal size, the copy of them is not.
    assert found.memory.cores >= found.memory.sam_copy
    assert (found.num_simulated, found.step.num_passes, found.state.num_tensors) == (world_size, 2, 2)


@pytest.mark.parametrize(
    "overrides",
    [
        ("sharding.replicas=16", "train.accumulate=2"),
        ("optim.method=das", "optim.alpha=0.1", "optim.base=sgd", "optim.clip_norm=1.0"),
        ("optim.method=sam+das", "optim.alpha=auto", "optim.rho=auto", "optim.base=sgd", "optim.momentum=0.9"),
        ("optim.scope=core", "train.precision=float64", "train.log_every=1"),
        ("train.precision=bf16", "network.init=data"),
        ("sharding.reduce_dtype=bf16", "sharding.replicas=16", "train.accumulate=2"),
    ],
    ids=lambda overrides: overrides[0],
)
def test_formulas_equal_the_step_for_other_steps_on_64_ranks(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    assert_equals_formulas(dry_run(config(tmp_path, "sharding.plan=fsdp", *overrides), 64, 5))


def test_a_classifier_of_several_networks_is_gathered_network_by_network() -> None:
    digits = load_config(Path(__file__).parents[2] / "configs" / "digits.yaml", ["sharding.plan=fsdp"])
    found = dry_run(digits, 4)
    assert_equals_formulas(found)
    assert len(found.weights.groups) == 3
    assert found.memory.other_parameters > 0


@pytest.mark.parametrize("name", ["covid_sam", "covid_das", "digits"])
def test_a_step_on_fake_tensors_holds_and_does_what_a_real_one_does(name: str) -> None:
    given = load_config(Path(__file__).parents[2] / "configs" / f"{name}.yaml")
    layout = Layout.alone()
    task = build_task(given, layout)
    batches = [task.microbatches(step, 1) for step in range(2)]
    ledger = Ledger()
    with ledger.watching():
        run = build_parts(given, task, layout)
        # Copies, whose memory is of torch and not of numpy.
        copies = (tree_map_only(torch.Tensor, torch.clone, batch) for batch in batches)
        real = measure_step(run, weights_of(given, run.model, layout), copies, ledger, EXACT)
    fake = dry_run(given, 1)
    assert (fake.memory, fake.activations, fake.peak) == (real.memory, real.activations, real.peak)
    assert (fake.flops, fake.sam_flops) == (real.flops, real.sam_flops)


def test_sam_doubles_the_messages_and_adds_a_copy_and_a_gradient(tmp_path: Path) -> None:
    sam, base = (dry_run(config(tmp_path, f"optim.method={word}"), 64) for word in ("sam", "base"))
    assert len(sam.collectives) == 2 * len(base.collectives)
    assert len(sam.sam_collectives) == len(base.collectives)
    assert base.sam_collectives == ()
    assert (base.memory.sam_copy, sam.memory.sam_copy) == (0, base.memory.cores)
    assert sam.memory.gradients == 2 * base.memory.gradients
    # What SAM adds beside a pass is less than that pass.
    assert sam.sam_flops == pytest.approx(sam.flops - base.flops, rel=0.1)


def test_a_rank_of_the_largest_simulated_world_holds_what_its_plan_says(tmp_path: Path) -> None:
    found = dry_run(config(tmp_path, "sharding.plan=fsdp"), 1024, 1000)
    # 2048 x 64 cut by 1,024 ranks; 64 x 16 x 32 and 32 x 32 whole; float32.
    assert found.memory.cores == 4 * (128 + 32768 + 1024)
    gathered = [call for call in found.collectives if call.kind == "all_gather"]
    assert [(call.message_bytes, call.num_ranks) for call in gathered] == [(4 * 131072, 1024)] * 4
    assert found.peak >= found.memory.cores + found.memory.optimizer_state + found.memory.sam_copy


def test_formulas_from_a_small_world_equal_a_larger_one_but_for_activations(tmp_path: Path) -> None:
    given = config(tmp_path, "sharding.plan=fsdp", "train.batch_size=null")
    small, large = dry_run(given, 4, 1), dry_run(given, 64, 33)
    found = extrapolate(small, large.plan, 33)
    assert found.memory == large.memory
    assert Counter(found.collectives) == Counter(large.collectives)
    assert Counter(found.sam_collectives) == Counter(large.sam_collectives)
    assert (found.world_size, found.num_simulated, found.activations) == (64, 4, small.activations)


def test_the_last_ranks_have_nothing_of_what_fewer_can_hold(tmp_path: Path) -> None:
    # 32 rows of 200 for 64 ranks, which divide neither.
    sizes = "data.sizes={a: 2048, b: 16, c: 200, r: 2}"
    found = dry_run(config(tmp_path, "sharding.plan=fsdp", sizes, "data.observed=0.1"), 64, 63)
    assert empty_pieces(found.plan, 63) == ("cores.2",)
    assert empty_pieces(found.plan, 31) == ()
    assert found.memory.cores - found.memory.sam_copy == 4 * 200


@pytest.mark.parametrize(
    ("plan", "bond_ranks", "world_size"),
    [
        *(("bond", "null", world_size) for world_size in (2, 4, 64, 1024)),
        *(("bond", "2", world_size) for world_size in (4, 64, 1024)),
        *(("fsdp+bond", "2", world_size) for world_size in (4, 64, 1024)),
    ],
)
def test_formulas_equal_what_ranks_that_share_bonds_hold_and_send_outside_of_networks(
    tmp_path: Path, plan: str, bond_ranks: str, world_size: int
) -> None:
    given = config(tmp_path, f"sharding.plan={plan}", f"sharding.bond_ranks={bond_ranks}")
    for rank in (0, world_size - 1):
        found = dry_run(given, world_size, rank)
        assert found.memory == memory_of(found.weights, found.plan, rank, found.state, found.step.num_passes)
        by_formula = Counter(collectives_of(found.weights, found.plan, found.step, rank))
        inside = Counter(found.collectives) - by_formula
        assert Counter(found.collectives) - inside == by_formula
        assert {call.num_ranks for call in inside} == {dict(found.plan.axes)["bond"]}


def test_a_fake_rank_gets_pieces_of_its_own_shape_after_another_rank() -> None:
    """DTensor keeps shapes of pieces, not whose they are: after an empty rank, the next one had empty gradients."""

    def new_piece(rank: int, rows: int) -> tuple[int, ...]:
        with fake_world(rank, 4):
            piece = torch.zeros(rows, 3)
            mesh = init_device_mesh("cpu", (4,))
            placed = DTensor.from_local(
                piece, mesh, [Shard(0)], run_check=False, shape=torch.Size((2, 3)), stride=(3, 1)
            )
            return tuple(placed.new_empty_strided((2, 3), (3, 1)).to_local().shape)

    assert new_piece(3, rows=0) == (0, 3)
    assert new_piece(0, rows=1) == (1, 3)


def test_ranks_that_share_bonds_send_inside_the_network_what_no_formula_says(tmp_path: Path) -> None:
    given = config(tmp_path, "sharding.plan=fsdp+bond", "sharding.bond_ranks=4", "train.batch_size=null")
    small, large = dry_run(given, 64, 5), dry_run(given, 256, 5)
    by_formula = Counter(collectives_of(large.weights, large.plan, large.step, 5))
    inside = Counter(large.collectives) - by_formula
    assert {call.num_ranks for call in inside} == {4}
    found = Counter(extrapolate(small, large.plan, 5).collectives) - by_formula
    assert [(call.kind, call.num_ranks, n) for call, n in found.items()] == [
        (call.kind, call.num_ranks, n) for call, n in inside.items()
    ]
    assert large.memory.cores < dry_run(config(tmp_path), 1).memory.cores / 4


def test_16384_ranks_are_planned_by_formulas_with_the_batch_of_the_rank(tmp_path: Path) -> None:
    given = config(tmp_path, "sharding.plan=fsdp", "sharding.replicas=16")
    found = dry_run(given, 16384, 16383)
    assert (found.world_size, found.num_simulated) == (16384, 1024)
    assert found.memory.cores == 4 * (128 + 32768 + 1024)
    # A quarter of an entry a rank: less than the four entries of a rank of 1,024.
    assert found.flops < dry_run(given, 1024, 1023).flops


def test_a_thousand_ranks_take_less_than_a_minute_and_a_gibibyte(tmp_path: Path) -> None:
    config(tmp_path)
    command = [sys.executable, "-c", MEASURED, str(tmp_path / "large.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    seconds, num_bytes, num_simulated = json.loads(done.stdout)
    assert num_simulated == 1024
    assert seconds < LIMIT_S
    assert num_bytes < LIMIT_BYTES


def test_nothing_is_left_of_a_dry_run_in_the_process(tmp_path: Path) -> None:
    watched = {(owner, name): owner.__dict__.get(name) for owner, name in WATCHED}
    state = torch.get_rng_state()
    dry_run(config(tmp_path, "sharding.plan=fsdp"), 64)
    with pytest.raises(InputError, match=r"sharding\.plan: fsdp: no core has a dim"):
        dry_run(config(tmp_path, "sharding.plan=fsdp", "data.sizes={a: 64, b: 16, c: 32, r: 2}"), 997)
    assert not dist.is_initialized()
    assert {(owner, name): owner.__dict__.get(name) for owner, name in WATCHED} == watched
    assert torch.equal(torch.get_rng_state(), state)
    assert type(torch.zeros(2)) is torch.Tensor
    assert not (tmp_path / "run").exists()


WATCHED = [(DeviceMesh, "__getitem__"), (nn.Module, "to"), (torch.UntypedStorage, "resize_")]


@pytest.mark.parametrize(
    ("world_size", "rank", "overrides", "problem"),
    [
        (0, 0, (), "--world-size: 0; a world has at least 1 rank"),
        (4, 4, (), "--rank: 4; the ranks of a world of 4 are 0 to 3"),
        (6, 0, ("sharding.plan=fsdp", "sharding.replicas=4"), "sharding.replicas: 4"),
        (4, 0, ("engine.kind=deepspeed", "engine.stage=1"), "engine.kind: deepspeed: the dry run knows the native"),
        (2, 0, ("train.batch_size=10000000",), "train.batch_size: is 10000000"),
    ],
)
def test_what_cannot_be_planned_is_an_input_error(
    tmp_path: Path, world_size: int, rank: int, overrides: tuple[str, ...], problem: str
) -> None:
    with pytest.raises(InputError) as raised:
        dry_run(config(tmp_path, *overrides), world_size, rank)
    assert problem in str(raised.value)
