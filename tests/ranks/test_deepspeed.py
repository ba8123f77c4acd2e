"""DeepSpeed's ZeRO under SAM, DAS and BAR: the steps of one process, at every stage; and mistakes that must show."""

from typing import Any

import numpy as np
import pytest
from deepspeed_cases import (
    CUT,
    a_pass_that_raises,
    a_pass_that_raises_half_way,
    bytes_held,
    five_grouped_steps,
    five_steps,
    goes_on_bit_for_bit,
    penalty_on_weights,
    refused,
    refused_weight,
    skip_together,
    stops_after,
    through_other_layers,
    weights_come_back,
    without_the_second_batch,
)
from rank_pool import RankPool

pytest.importorskip("deepspeed")
STAGES = (0, 1, 2, 3, CUT)
# float32, five steps: what the order of sums comes to, for each base, in units of the largest weight (about 1.5).
TOLERANCE = {"sgd": 2e-7, "adamw": 5e-7}
every_stage = pytest.mark.parametrize("stage", STAGES)


def largest(left: list[np.ndarray], right: list[np.ndarray]) -> float:
    """The largest difference, in units of the largest weight."""
    scale = max(float(np.abs(b).max()) for b in right)
    return max(float(np.abs(a - b).max()) for a, b in zip(left, right, strict=True)) / scale


@every_stage
@pytest.mark.parametrize(
    ("method", "base", "count", "clip_norm"),
    [
        ("sam", "sgd", 1, None),
        ("sam", "adamw", 2, None),
        ("sam+das", "sgd", 2, None),
        ("das", "sgd", 1, 0.05),
        ("obar", "adamw", 1, None),
        ("sam:core", "sgd", 1, 0.05),
        ("sam:network", "sgd", 1, None),
        ("base", "adamw", 2, 0.05),
    ],
)
def test_five_steps_are_those_of_one_process(
    two_ranks: RankPool, stage: int | str, method: str, base: str, count: int, clip_norm: float | None
) -> None:
    expected = five_steps(None, method, base, count, clip_norm)
    assert expected["is_alone"]
    for got in two_ranks.run(five_steps, stage, method, base, count, clip_norm):
        assert largest(got["parameters"], expected["parameters"]) < TOLERANCE[base]
        if got["snapshot"]:
            check_numbers(got["snapshot"], expected["snapshot"])


def check_numbers(got: dict[str, Any], expected: dict[str, Any]) -> None:
    assert got.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, float):
            # Differences of sums of squares of float32 numbers.
            assert got[key] == pytest.approx(value, rel=1e-3, abs=1e-6), key
        else:
            assert got[key] == value, key


@pytest.mark.parametrize(
    ("stage", "zero"),
    [
        (1, {"overlap_comm": True}),
        (2, {"contiguous_gradients": False, "reduce_bucket_size": 16}),
        (2, {"reduce_scatter": False}),
        (3, {"sub_group_size": 10, "reduce_bucket_size": 16}),
        (3, {"stage3_param_persistence_threshold": 8, "stage3_prefetch_bucket_size": 0}),
    ],
)
def test_other_ways_to_cut_and_to_send_change_nothing(two_ranks: RankPool, stage: int, zero: dict[str, Any]) -> None:
    expected = five_steps(None, "sam+das", "adamw", 2)
    for got in two_ranks.run(five_steps, stage, "sam+das", "adamw", 2, settings={"zero_optimization": zero}):
        assert largest(got["parameters"], expected["parameters"]) < TOLERANCE["adamw"]


@every_stage
def test_bfloat16_passes_are_those_of_the_native_engine(two_ranks: RankPool, stage: int | str) -> None:
    """Cast alike on each rank: what differs is the order in which two ranks' float32 gradients are added."""
    expected = two_ranks.run(five_steps, None, is_bf16=True)
    single = five_steps(None)["parameters"]
    for got, native in zip(two_ranks.run(five_steps, stage, is_bf16=True), expected, strict=True):
        assert largest(got["parameters"], native["parameters"]) < TOLERANCE["sgd"]
        assert largest(got["parameters"], single) > 100 * TOLERANCE["sgd"]


@every_stage
@pytest.mark.parametrize("base", TOLERANCE)
def test_five_steps_on_four_ranks_too(four_ranks: RankPool, stage: int | str, base: str) -> None:
    expected = five_steps(None, "sam+das", base, 2)
    for got in four_ranks.run(five_steps, stage, "sam+das", base, 2):
        assert largest(got["parameters"], expected["parameters"]) < TOLERANCE[base]


@every_stage
def test_the_weights_come_back_bit_for_bit(two_ranks: RankPool, stage: int | str) -> None:
    assert two_ranks.run(weights_come_back, stage) == [True, True]


@every_stage
def test_a_loss_that_is_no_number_on_one_rank_skips_the_step_on_all(two_ranks: RankPool, stage: int | str) -> None:
    expected = without_the_second_batch()
    for got in two_ranks.run(skip_together, stage):
        assert (got["is_untouched"], got["num_skipped"]) == (True, 1)
        assert largest(got["parameters"], expected) < TOLERANCE["adamw"]


@every_stage
def test_a_pass_that_raises_leaves_weights_and_the_next_steps_right(two_ranks: RankPool, stage: int | str) -> None:
    expected = five_steps(None)["parameters"]
    for got in two_ranks.run(a_pass_that_raises, stage):
        assert (got["raised"], got["is_untouched"]) == (True, True)
        assert largest(got["parameters"], expected) < TOLERANCE["sgd"]


@every_stage
@pytest.mark.parametrize("where", ["forward", "backward"])
@pytest.mark.parametrize("sweep", [0, 1])
def test_an_error_half_way_leaves_weights_and_the_next_steps_right(
    two_ranks: RankPool, stage: int | str, where: str, sweep: int
) -> None:
    expected = five_steps(None, base="adamw")["parameters"]
    for got in two_ranks.run(a_pass_that_raises_half_way, stage, where, sweep):
        assert (got["raised"], got["is_untouched"]) == ("'no such layer'", True)
        assert largest(got["parameters"], expected) < TOLERANCE["adamw"]


@every_stage
def test_groups_of_their_own_rates_buffers_and_frozen_and_unused_weights(two_ranks: RankPool, stage: int | str) -> None:
    expected = five_grouped_steps(None)
    for got in two_ranks.run(five_grouped_steps, stage):
        assert largest(got, expected) < TOLERANCE["sgd"]


@pytest.mark.parametrize("stage", [1, 2])
def test_losses_through_other_layers_end_all_ranks_and_move_nothing(two_ranks: RankPool, stage: int) -> None:
    for said, is_untouched in two_ranks.run(through_other_layers, stage):
        assert said.startswith("engine: the ranks' losses came to different parameters")
        assert is_untouched


@pytest.mark.parametrize(
    ("kind", "says"),
    [("scalar", "odd is a number without a dim"), ("empty", "odd is empty"), ("double", "odd is torch.float64")],
)
def test_weights_that_deepspeed_cannot_send_are_named(two_ranks: RankPool, kind: str, says: str) -> None:
    for said in two_ranks.run(refused_weight, kind):
        assert said.startswith(f"model: {says}")


def test_a_loss_that_reads_weights_elsewhere_is_told_at_stage_3(two_ranks: RankPool) -> None:
    assert two_ranks.run(penalty_on_weights, 2) == ["nothing", "nothing"]
    for said in two_ranks.run(penalty_on_weights, 3):
        assert said.startswith("engine: the loss read weights outside the model's forward")


@every_stage
@pytest.mark.parametrize("method", ["sam", "das"])
def test_a_loaded_engine_goes_on_bit_for_bit(two_ranks: RankPool, stage: int | str, method: str) -> None:
    assert two_ranks.run(goes_on_bit_for_bit, stage, method) == [True, True]


def test_a_stop_asked_for_by_one_rank_reaches_all(two_ranks: RankPool) -> None:
    assert two_ranks.run(stops_after, 2) == [[False, True, True]] * 2


@pytest.mark.parametrize(
    ("mistake", "stages", "count"),
    [
        # With no parameter kept whole between passes nothing is stale at stage 3.
        ("never_sent", (1, 2, 3), 1),
        ("copies_perturbed", (1, 2, 3, CUT), 1),
        ("never_forgotten", (0, 3, CUT), 1),
        ("automatic_boundaries", (0, 3), 2),
        ("default_clipping", (1, 2, 3), 1),
    ],
)
def test_a_wrong_recipe_is_far_off(two_ranks: RankPool, mistake: str, stages: tuple[int, ...], count: int) -> None:
    """Else the tests above could pass by chance."""
    expected = five_steps(None, count=count)["parameters"]
    for stage in stages:
        for got in two_ranks.run(five_steps, stage, "sam", "sgd", count, None, mistake):
            assert largest(got["parameters"], expected) > 1000 * TOLERANCE["sgd"], stage


def test_gradients_of_the_first_pass_are_kept_for_the_numbers_of_the_step(two_ranks: RankPool) -> None:
    key = "balance/first/predicted_rate_exact"
    right, wrong = (
        two_ranks.run(five_steps, 3, wrong=wrong)[0]["snapshot"][key] for wrong in (None, "shares_gradients")
    )
    assert right == pytest.approx(five_steps(None)["snapshot"][key], rel=1e-3)
    assert abs(wrong - right) > 0.01 * abs(right)


def test_from_stage_1_on_a_rank_holds_half_of_the_optimizer_state(two_ranks: RankPool) -> None:
    whole, *cut = [max(two_ranks.run(bytes_held, stage)) for stage in STAGES]
    # DeepSpeed pads the flat groups to a multiple of ranks and alignment.
    assert all(whole / 2 <= part < whole / 2 + 128 for part in cut)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"zero_optimization": {"round_robin_gradients": True}}, "zero_optimization.round_robin_gradients is True"),
        ({"zero_optimization": {"stage": 1}}, "zero_optimization.stage is 1 there, and stage is 2 here"),
        ({"fp16": {"enabled": True}}, "fp16.enabled is True there: SAM's radius"),
        ({"optimizer": {"type": "Adam"}}, "optimizer is {'type': 'Adam'} there: the optimizer is distsam's own"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op is 'sum' there: the loss is the mean"),
        ({"zero_optimization": {"zero_quantized_weights": True}}, "zero_optimization.zero_quantized_weights is True"),
        ({"prescale_gradients": True}, "DeepSpeed does not take it: pre-scale gradients is not yet supported"),
        ({"zero_optimization": {"overlap_comm": False, "reduce_bucket_size": "auto"}, "fp16": "auto"}, "nothing"),
    ],
)
def test_settings_that_break_sam_are_refused(two_ranks: RankPool, settings: dict[str, Any], says: str) -> None:
    for said in two_ranks.run(refused, settings):
        assert said.startswith(f"config: {says}" if says != "nothing" else says)
