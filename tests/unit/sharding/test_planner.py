"""Which plan is taken: the fastest that fits by the formulas, the simplest where several are nearly as fast."""

from collections.abc import Callable
from dataclasses import replace
from math import prod

import pytest

import distsam
from distsam.sharding import Fsdp, NetworkWeights, Replicate
from distsam.sharding.cost import State, StepForm, Weights, memory_of
from distsam.sharding.cut_cores import CutCores, Rows
from distsam.sharding.moves import AxisRanks
from distsam.sharding.network_cost import NetworkUse, NetworkWork, merged, work_of
from distsam.sharding.planner import Choice, Machine, Training, choose_plan, held_bytes, is_worth_cutting, price
from distsam.sharding.traffic import LINKS
from distsam.tensornet import NetworkSpec
from distsam.tensornet.planner import plan_entries

GIB = 2**30
TINY = distsam.tucker((20, 30, 40), (10, 10, 10))
LONG = distsam.cp((10_000_000, 1000, 100), 16)
MODES = tuple("abcxyz")
# 16^3 -> 16^3, each core with a mode of both sides: 16.9 million parameters.
LAYER = NetworkSpec(
    "tt_matrix",
    (("a", "x", "p"), ("p", "b", "y", "q"), ("q", "c", "z")),
    MODES,
    (*((mode, 16) for mode in MODES), ("p", 256), ("q", 256)),
    ("left", "middle", "right"),
)


def training(
    specs: list[NetworkSpec], use: Callable[[NetworkWeights], NetworkUse], batch: int, *, is_routable: bool = False
) -> Training:
    """SAM with Adam, float32."""
    networks = [
        NetworkWeights(spec, tuple(f"{n}.cores.{k}" for k in range(spec.num_cores))) for n, spec in enumerate(specs)
    ]
    shapes = {name: shape for n in networks for name, shape in zip(n.parameters, n.spec.core_shapes, strict=True)}
    names = frozenset(shapes)
    weights = Weights(dict.fromkeys(shapes, 4), names, names, tuple(network.parameters for network in networks))
    step = StepForm((len(shapes) + 2,) * 2)
    return Training(shapes, weights, networks, [use(n) for n in networks], State(2, 4), step, batch, is_routable)


def of_entries(specs: list[NetworkSpec], batch: int, *, is_routable: bool = False) -> Training:
    return training(specs, lambda n: NetworkUse(n, "entries", batch), batch, is_routable=is_routable)


def of_layers(num_layers: int, batch: int) -> Training:
    return training([LAYER] * num_layers, lambda n: NetworkUse(n, "multiply", batch, ("x", "y", "z")), batch)


def machine(memory_gib: float = 64.0, link: str = "infiniband", flops_per_s: float = 1e13) -> Machine:
    return Machine(int(memory_gib * GIB), LINKS[link], flops_per_s)


def assert_taken(choice: Choice, kind: str) -> None:
    assert choice.chosen.candidate.kind == kind, choice.describe()
    assert choice.fits
    assert choice.chosen.peak_bytes <= choice.machine.memory_bytes


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("num_ranks", [2, 3, 4, 16, 64, 1024])
def test_a_network_of_4000_parameters_is_replicated(num_ranks: int, link: str) -> None:
    found = of_entries([TINY], 10_000)
    assert sum(map(prod, found.shapes.values())) < 4000
    choice = choose_plan(found, num_ranks, machine(link=link))
    assert_taken(choice, "replicate")
    # What was measured of FSDP2 on such a network: 2 to 3 times as long.
    fsdp = next(priced for priced, _ in choice.others if priced.candidate.kind == "fsdp")
    assert 1.5 < fsdp.time_s / choice.chosen.time_s < 4


def test_a_single_process_is_left_without_any_sharding() -> None:
    for found in (of_entries([TINY], 100), of_layers(16, 16)):
        choice = choose_plan(found, 1, machine())
        assert (choice.plan, choice.others, choice.refused) == (Replicate(), (), {})


@pytest.mark.parametrize("link", ["infiniband", "nvlink", "ethernet"])
def test_trains_of_270_million_parameters_are_cut_along_bonds_where_they_do_not_fit(link: str) -> None:
    found = of_layers(16, 16 * 1024)
    assert sum(map(prod, found.shapes.values())) == pytest.approx(270e6, rel=0.01)
    choice = choose_plan(found, 1024, machine(1.5, link))
    assert "bond" in choice.chosen.candidate.kind
    assert choice.fits
    assert choice.chosen.peak_bytes < 1.5 * GIB
    copies = next(priced for priced, why in choice.others if priced.candidate.kind == "replicate" and "1.5 GiB" in why)
    # Weights, gradients of two passes, Adam's two numbers, SAM's copy, that of the best weights, messages.
    assert copies.peak_bytes == pytest.approx(8 * 4 * 270e6, rel=0.02)


def test_the_rows_of_a_mode_of_10_million_are_divided() -> None:
    assert_taken(choose_plan(of_entries([LONG], 100_000, is_routable=True), 8, machine(1.0)), "mode")
    without = choose_plan(of_entries([LONG], 100_000), 8, machine(1.0))
    assert "mode" not in without.chosen.candidate.kind
    # Copies of the small cores alone are averaged.
    averaged = choose_plan(of_entries([LONG], 100_000, is_routable=True), 8, machine(64.0))
    assert_taken(averaged, "mode")


def test_of_plans_that_are_nearly_as_fast_the_simplest_is_taken() -> None:
    found = of_layers(1, 1024)
    # A link beside which all plans take the time of their operations.
    fast = Machine(64 * GIB, LINKS["nvlink"], 1e6)
    choice = choose_plan(found, 4, fast)
    assert_taken(choice, "replicate")
    assert all(why.startswith("no faster by more than 5%") or "times as long" in why for _, why in choice.others)
    times = [priced.time_s for priced, _ in choice.others]
    assert min(times) < 1.05 * choice.chosen.time_s


def test_the_smallest_peak_is_taken_where_nothing_fits() -> None:
    choice = choose_plan(of_layers(2, 16), 2, machine(1e-6))
    assert not choice.fits
    assert choice.chosen.peak_bytes == min(
        priced.peak_bytes for priced in [choice.chosen, *(other for other, _ in choice.others)]
    )
    assert "it does not fit either, but has the smallest peak" in choice.describe()


def test_the_same_arguments_give_the_same_choice() -> None:
    first, second = (choose_plan(of_layers(3, 4096), 64, machine(1.0)) for _ in range(2))
    assert first.describe() == second.describe()
    assert first.plan == second.plan


def test_a_choice_says_of_every_other_kind_what_it_takes_and_why_not() -> None:
    choice = choose_plan(of_layers(16, 16 * 1024), 1024, machine(1.5))
    first, *others = choice.describe().splitlines()
    assert first.startswith("auto takes bond on 128 (replicate) x 8 (bond): ")
    assert [line.split(" on ")[0] for line in others] == ["  not replicate", "  not fsdp", "  not fsdp+bond"]
    assert all(" ms a step, " in line and "iB a rank: " in line for line in others)


def test_a_plan_that_cannot_serve_the_model_is_named_with_the_reason() -> None:
    choice = choose_plan(of_entries([distsam.cp((7, 5, 3), 3)], 100), 17, machine())
    assert_taken(choice, "replicate")
    assert choice.refused["fsdp"].startswith("fsdp: no core has a dim that 17 ranks divide")
    assert "not fsdp: fsdp: no core has a dim" in choice.describe()


def test_small_networks_are_not_worth_cutting_and_large_ones_are() -> None:
    small, large = of_entries([TINY], 100), of_layers(1, 16)
    assert not is_worth_cutting(small, 4, machine())
    assert is_worth_cutting(small, 4, machine(1e-6))
    assert is_worth_cutting(large, 4, machine())
    assert not is_worth_cutting(large, 1, machine())


def test_what_is_held_is_what_the_formulas_of_cost_say_and_what_fsdp_gathers() -> None:
    found = of_layers(2, 16)
    choice = choose_plan(found, 8, machine(0.7))
    for priced in (choice.chosen, *(other for other, _ in choice.others)):
        memory = memory_of(found.weights, priced.placed, 0, found.state, 2)
        held = held_bytes(priced.placed, found, machine())
        kept = sum(held[key] for key in ("weights", "gradients", "the optimizer's state", "SAM's copy"))
        assert kept == memory.total
        assert (held["gathered weights"] > 0) == ("fsdp" in priced.candidate.kind)


@pytest.mark.parametrize(("kind", "modes"), [("multiply", ("x", "y", "z")), ("rows", ("x",)), ("dense", ())])
def test_ranks_that_share_bonds_compute_less_and_send_what_one_process_need_not(
    kind: str, modes: tuple[str, ...]
) -> None:
    use = NetworkUse(NetworkWeights(LAYER, ("a", "b", "c")), kind, 64, modes)
    alone, shared = work_of(use), work_of(use, num_bond=8)
    assert (alone.sent_elements, alone.num_messages) == (0, 0)
    assert shared.flops < alone.flops
    assert shared.sent_elements > 0
    assert shared.num_messages > 0


def test_calls_that_are_alike_are_counted_together() -> None:
    use = NetworkUse(NetworkWeights(TINY, ("a", "b", "c", "d")), "entries", 64)
    assert [u.num_calls for u in merged([use, use, use])] == [3]
    assert work_of(merged([use, use])[0]).flops == 2 * work_of(use).flops


def test_the_time_of_messages_is_their_bytes_and_a_latency_for_each_hop() -> None:
    link = LINKS["loopback"]
    _, sending = NetworkWork(0.0, 1e6, 3).time_s(8, 4, link, 1.0)
    assert sending == pytest.approx(8e6 * 3 / 4 / link.bytes_per_s + 3 * 2 * 2 * link.latency_s, rel=1e-12)
    assert NetworkWork(5.0, 1e6, 3).time_s(8, 1, link, 10.0) == (0.5, 0.0)


def test_more_ranks_see_fewer_examples_and_so_compute_less() -> None:
    found = of_layers(1, 4096)
    copies = choose_plan(found, 2, machine()).chosen.candidate
    two, four = (price(copies, found, num, machine()) for num in (2, 4))
    assert four.computing_s < two.computing_s


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_ranks_that_share_no_bond_move_nothing_and_merge_as_one_process_would(num_ranks: int) -> None:
    """Tables that every rank has were counted as moved, and a train was joined core by core, ten times as long."""
    spec = distsam.tt((1_000_000, 1000, 50), 16)
    rows = Rows(spec.modes[0], 0, 1_000_000 // num_ranks, AxisRanks(None, num_ranks, 0))
    found = CutCores(spec, (None,) * 3, AxisRanks(None, 1, 0), rows).for_entries(2**17)
    alone = plan_entries(distsam.tt((1_000_000 // num_ranks, 1000, 50), 16), 2**17)
    assert (found.plan.cut, found.moved_elements) == (alone.cut, 0)


def test_a_checkpoint_copied_in_the_same_memory_is_counted_weights_and_state() -> None:
    found = of_layers(2, 16)
    plan = choose_plan(found, 8, machine()).chosen.placed
    on_gpu, on_cpu = machine(), replace(machine(), copies_checkpoints=True)
    more = sum(held_bytes(plan, found, on_cpu).values()) - sum(held_bytes(plan, found, on_gpu).values())
    held = held_bytes(plan, found, on_gpu)
    assert more == held["weights"] + held["the optimizer's state"] > 0


def test_what_the_optimizer_reads_and_writes_takes_time_and_rows_divide_it() -> None:
    found = of_entries([LONG], 10_000, is_routable=True)
    slow = replace(machine(), memory_bytes_per_s=2e10)
    fast, copies = (choose_plan(found, 2, m) for m in (slow, machine()))
    kept = sum(prod(shape) for shape in found.shapes.values()) * 4 * 5  # two gradients, SAM's copy, two averages
    [on_slow] = [p for p, _ in fast.others if p.candidate.kind == "replicate"]
    [on_fast] = [p for p in (copies.chosen, *(p for p, _ in copies.others)) if p.candidate.kind == "replicate"]
    assert on_slow.computing_s - on_fast.computing_s == pytest.approx(6 * kept / 2e10, rel=1e-5)
    assert fast.chosen.candidate.kind != "replicate"


def test_fsdp_keeps_whole_gradients_between_micro_batches() -> None:
    once = of_layers(2, 16)
    more = replace(once, step=replace(once.step, accumulate=2))
    plan = Fsdp().place(once.shapes, Fsdp().axes(4), once.networks)
    key = "gradients between micro-batches"
    assert held_bytes(plan, once, machine())[key] == 0
    assert held_bytes(plan, more, machine())[key] == 4 * sum(prod(shape) for shape in once.shapes.values())
