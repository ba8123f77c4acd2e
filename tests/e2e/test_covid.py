"""COVID-19 serology: what the published 0.948 is, the fit of entries never seen, and the bound that DAS needs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from command_line import ROOT

from distsam.errors import TrainingDiverged
from distsam.sharding import Layout
from distsam.train import load_config, run_training
from distsam.train.build import RunParts, build_parts, build_task

SEEDS = (0, 1, 2)
# The 0.975 quantile of Student's t with 2 degrees of freedom: half a 95 % interval of three seeds, in standard errors.
T_OF_THREE = 4.303
# The strengths that validation chose on the tuning seeds, for the mean of squares.
METHODS = {
    "sam": ["optim.rho=0.01"],
    "das": ["optim.alpha=1.0"],
    "nbar": ["optim.alpha=5.0"],
    "obar": ["optim.alpha=10.0"],
    "sam+das": ["optim.rho=0.01", "optim.alpha=1.0"],
}
# Strong, and on the sum of squares, where gradients are large: without a bound some seeds diverge.
STRONG_DAS = ["optim.method=das", "optim.alpha=1.0", "network.ranks=[4, 4, 4]"]


def train(folder: Path, config: str, *overrides: str) -> list[dict[str, Any]]:
    """The summaries of a config in configs/, one a seed."""
    path = ROOT / "configs" / f"{config}.yaml"
    wanted = [[f"run.seed={seed}", f"run.dir={folder}/{config}{seed}", "train.num_threads=1"] for seed in SEEDS]
    return [run_training(load_config(path, [*one, *overrides])).as_json() for one in wanted]


def build(folder: Path, *overrides: str) -> RunParts:
    """The reference run with another seed or method, ready for its first step."""
    config = load_config(ROOT / "configs" / "covid_base.yaml", [f"run.dir={folder}/run", *overrides])
    layout = Layout.alone()
    return build_parts(config, build_task(config, layout), layout)


def advance(run: RunParts, steps: int) -> None:
    for step in range(steps):
        [piece] = run.task.microbatches(step, 1)
        run.engine.step([lambda piece=piece: run.task.loss(run.model, piece)])  # type: ignore[misc]


def values(summaries: list[dict[str, Any]], key: str) -> np.ndarray:
    return np.array([summary[key] for summary in summaries])


def is_finite(run: RunParts) -> bool:
    return all(bool(torch.isfinite(core).all()) for core in run.model.cores)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return train(tmp_path_factory.mktemp("reference"), "covid_base", "train.steps=10000")


@pytest.fixture(scope="module")
def best(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return train(tmp_path_factory.mktemp("best"), "covid_best")


def test_the_published_number_is_the_uncentred_fit_of_the_training_entries(reference: list[dict[str, Any]]) -> None:
    # The mean of the three splits, as published: single splits scatter by more than the 0.002 (0.947 to 0.951).
    assert values(reference, "train/r2_uncentred").mean() == pytest.approx(0.948, abs=0.002)


def test_the_same_runs_fail_on_entries_that_they_never_saw(reference: list[dict[str, Any]]) -> None:
    assert (values(reference, "heldout/r2") < -5).all()


def test_the_shipped_config_fits_entries_that_it_never_saw(best: list[dict[str, Any]]) -> None:
    # Three seeds gave 0.7612 with a 95 % interval of 0.021, so 0.740 at the lower end; eight of other starts gave 0.762
    # with a standard deviation of 0.0074, which puts the mean of three new splits above 0.750.
    assert values(best, "heldout/r2").mean() > 0.74
    assert all(summary["weights"] == "best" for summary in best)


def test_a_strong_das_stays_finite_through_the_reference_run(tmp_path: Path) -> None:
    run = build(tmp_path, *STRONG_DAS, "run.seed=2")
    advance(run, 5000)
    assert run.engine.counters()["das/clipped"] > 0  # 6 times in this seed, from about step 3,450 on; never in seed 1
    assert run.engine.counters()["num_skipped"] == 0
    assert is_finite(run)
    assert run.task.evaluate(run.model)["train/r2_uncentred"] > 0.7


def test_the_bound_is_what_keeps_a_strong_das_finite(tmp_path: Path) -> None:
    # A start 20 times too large makes the gradients large at once, which a run from a fair start takes thousands of
    # steps to do, in some seeds and not in others.
    start = [*STRONG_DAS, "network.init_std=30.0"]
    bounded = build(tmp_path, *start)
    advance(bounded, 400)
    assert bounded.engine.counters()["num_skipped"] == 0
    assert bounded.engine.counters()["das/clipped"] > 100
    with pytest.raises(TrainingDiverged):
        advance(build(tmp_path, *start, "optim.lambda_max=0.999999"), 400)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(3))
def test_a_strong_das_stays_finite_from_the_scale_of_the_data(tmp_path: Path, seed: int) -> None:
    run = build(tmp_path, *STRONG_DAS, "network.init_std=null", f"run.seed={seed}")
    advance(run, 5000)
    assert run.engine.counters()["num_skipped"] == 0
    assert is_finite(run)


@pytest.mark.soak
def test_the_reference_ends_where_the_literature_says(tmp_path: Path) -> None:
    summaries = train(tmp_path, "covid_base")
    assert values(summaries, "train/r2_uncentred").mean() == pytest.approx(0.948, abs=0.002)
    assert (values(summaries, "heldout/r2") < -40).all()


@pytest.mark.soak
@pytest.mark.parametrize("method", ["sam", "das", "nbar"])
def test_every_method_meets_the_published_number_alike(tmp_path: Path, method: str) -> None:
    summaries = train(tmp_path, f"covid_{method}", "train.steps=10000")
    assert values(summaries, "train/r2_uncentred").mean() == pytest.approx(0.948, abs=0.002)


@pytest.mark.soak
@pytest.mark.parametrize("method", METHODS)
def test_no_method_differs_from_its_base_beyond_the_interval(
    tmp_path: Path, best: list[dict[str, Any]], method: str
) -> None:
    summaries = train(tmp_path, "covid_best", f"optim.method={method}", *METHODS[method])
    gain = values(summaries, "heldout/r2") - values(best, "heldout/r2")
    assert abs(gain.mean()) <= T_OF_THREE * gain.std(ddof=1) / np.sqrt(len(SEEDS))
