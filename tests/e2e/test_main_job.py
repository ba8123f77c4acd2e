"""What the README promises of the main job: two ranks, a complete run folder, scores that can be had again."""

import json
import shutil
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from command_line import ROOT, alone, from_file, invoke, on_two_ranks, run, small_config

import distsam
from distsam.runs.rows import read_rows
from distsam.train.saved_run import open_run


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quickstart") / "run"
    result = run(on_two_ranks("train", ROOT / "configs" / "quickstart.yaml", f"run.dir={folder}"))
    assert result.returncode == 0, result.stderr
    assert "held-out R2" in result.stdout
    assert f"run folder      {folder}" in result.stdout
    assert "Warning" not in result.stderr
    return folder


def test_the_run_folder_is_complete(quickstart: Path) -> None:
    names = {path.name for path in quickstart.iterdir()}
    files = {"about.json", "config.yaml", "metrics.jsonl", "summary.json", "curves.png", "lock"}
    assert names == {"checkpoints", *files}
    assert matplotlib.image.imread(quickstart / "curves.png").shape[:2] == (960, 1920)
    assert not list(quickstart.rglob("*.tmp"))


def test_the_summary_holds_what_scripts_read(quickstart: Path) -> None:
    summary = json.loads((quickstart / "summary.json").read_text())
    assert summary["heldout/r2"] > 0.6
    assert summary["world_size"] == 2
    assert 0 < summary["wall_s"] < 180
    assert summary["stopped_by"] == "last step"
    assert {"heldout/rmse", "train/r2_uncentred", "steps", "versions", "best_step", "last/heldout/r2"} <= set(summary)
    assert summary["balance/network/norm_deviation"] > 0
    # Scores are those of the best weights, the balance that of the last step: it says so.
    assert summary["balance_step"] == 600
    [(name, network)] = summary["networks"].items()
    assert (name, network["format"], network["shape"]) == ("network", "tucker", [438, 6, 11])
    assert network["core_names"] == ["central", "factor_0", "factor_1", "factor_2"]
    assert summary["goal"]["key"] == "validation/r2"


def test_every_row_has_the_promised_names_in_the_order_of_steps(quickstart: Path) -> None:
    rows = read_rows(quickstart / "metrics.jsonl")
    steps = [row["train/step"] for row in rows]
    assert steps[:2] == [0, 1]
    assert steps == sorted(set(steps))
    balance = ("norm_deviation", "covariance", "relative_deviation", "max_over_min")
    rates = ("predicted_rate", "predicted_rate_exact", "measured_rate")
    wanted = {f"balance/network/{name}" for name in (*balance, *rates)}
    wanted |= {f"balance/network/core_norm_sq/{core}" for core in ("central", "factor_0", "factor_1", "factor_2")}
    wanted |= {"train/loss", "sam/grad_norm", "sam/loss_gap", "sam/skipped", "heldout/r2", "time/steps_per_s"}
    assert wanted <= set(rows[-1])
    assert all(rows[-1][name] is not None for name in wanted)


def test_evaluate_gives_the_summary_again_in_one_process(quickstart: Path) -> None:
    summary = json.loads((quickstart / "summary.json").read_text())
    result = invoke("evaluate", quickstart, "--json")
    assert result.exit_code == 0, result.output
    for name, value in json.loads(result.stdout).items():
        assert value == pytest.approx(summary[name], rel=1e-5), name
    assert "heldout" in invoke("evaluate", quickstart).stdout


def test_predict_completes_the_tensor_and_single_entries(quickstart: Path, tmp_path: Path) -> None:
    assert invoke("predict", quickstart, "-o", tmp_path / "filled.npz").exit_code == 0
    with np.load(tmp_path / "filled.npz") as file:
        filled = file["tensor"]
    assert filled.shape == (438, 6, 11)
    assert np.isfinite(filled).all()

    indices = np.array([[0, 0, 0], [437, 5, 10]])
    np.savez(tmp_path / "ask.npz", indices=indices)
    command = ("predict", quickstart, "-o", tmp_path / "some.npz", "--entries", tmp_path / "ask.npz")
    assert invoke(*command).exit_code == 0
    with np.load(tmp_path / "some.npz") as file:
        assert np.array_equal(file["indices"], indices)
        assert file["values"].shape == (2,)
    assert not list(tmp_path.glob(".*"))


def test_a_run_is_loaded_with_its_config_rows_and_network(quickstart: Path, tmp_path: Path) -> None:
    loaded = distsam.load(quickstart)
    assert (loaded.config.optim.method, loaded.config.run.dir) == ("sam", str(quickstart))
    assert [row["train/step"] for row in loaded.rows] == [
        row["train/step"] for row in read_rows(quickstart / "metrics.jsonl")
    ]
    assert loaded.summary["heldout/r2"] == json.loads((quickstart / "summary.json").read_text())["heldout/r2"]
    indices = np.array([[0, 0, 0], [437, 5, 10]])
    filled = tmp_path / "filled.npz"
    assert invoke("predict", quickstart, "-o", filled).exit_code == 0
    with np.load(filled) as file:
        expected = file["prediction"][tuple(indices.T)]
    # In float32, entry by entry or all at once.
    assert loaded.task.predict(loaded.model, indices) == pytest.approx(expected, rel=1e-4)


def test_a_folder_that_is_no_run_is_not_loaded_and_one_that_goes_on_is(quickstart: Path, tmp_path: Path) -> None:
    with pytest.raises(distsam.InputError, match="is no run folder"):
        distsam.load(tmp_path)
    shutil.copy(quickstart / "config.yaml", tmp_path)
    going_on = distsam.load(tmp_path)
    assert (going_on.rows, going_on.summary) == ([], {})
    with pytest.raises(distsam.InputError, match="has no checkpoint that can be used"):
        going_on.model  # noqa: B018


def test_an_alert_is_a_line_and_a_field_of_the_row_and_changes_nothing(tmp_path: Path) -> None:
    plain, watched = tmp_path / "plain", tmp_path / "watched"
    bounds = ["train.alert_deviation=1e-9", "train.alert_share=0.999999"]
    assert invoke("train", small_config(tmp_path), f"run.dir={plain}").exit_code == 0
    done = invoke("train", small_config(tmp_path), f"run.dir={watched}", *bounds)
    assert done.exit_code == 0, done.output
    [line] = [line for line in done.stderr.splitlines() if "is above 1e-09" in line]
    assert line.startswith("distsam: step ")
    rows, expected = read_rows(watched / "metrics.jsonl"), read_rows(plain / "metrics.jsonl")
    assert [row.pop("balance/network/alerts") for row in rows][-1] == 1
    without_times = [
        [{k: v for k, v in row.items() if not k.startswith("time/")} for row in part] for part in (rows, expected)
    ]
    assert without_times[0] == without_times[1]
    resumed = invoke(
        "train", small_config(tmp_path), f"run.dir={plain}", *bounds, "train.resume=auto", "train.steps=30"
    )
    assert resumed.exit_code == 0, resumed.output
    assert "is above 1e-09" in resumed.stderr


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        (["network.bond_dim=1", "data.sizes={a: 20, b: 15, c: 10, r: 3}"], "R2 could be higher on training"),
        (
            ["network.bond_dim=12", "data.observed=0.15", "optim.weight_decay=1e-9"],
            "times that of training: the network",
        ),
        (["network.bond_dim=2", "train.steps=300"], None),
    ],
)
def test_a_run_says_whether_its_network_is_too_small_or_too_large(
    tmp_path: Path, keys: list[str], says: str | None
) -> None:
    base = ["train.steps=400", "optim.lr=0.05", "optim.method=sam", "optim.alpha=null"]
    done = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/run", *base, *keys)
    assert done.exit_code == 0, done.output
    found = [line for line in done.stderr.splitlines() if "the network" in line]
    assert found == [] if says is None else len(found) == 1 and says in found[0]


def test_export_writes_the_weights_that_evaluate_scores(quickstart: Path, tmp_path: Path) -> None:
    done = invoke("export", quickstart, "-o", tmp_path / "weights.pt")
    assert done.exit_code == 0, done.stderr
    weights = torch.load(tmp_path / "weights.pt", weights_only=True)
    scored = open_run(quickstart).model.state_dict()
    assert weights.keys() == scored.keys()
    assert all(torch.equal(weights[name], value) for name, value in scored.items())
    summary = json.loads((quickstart / "summary.json").read_text())
    what = f"{len(scored)} tensors, {summary['num_parameters']} numbers; the best weights, those of step "
    assert f"{what}{summary['best_step']}" in done.stdout
    assert not list(tmp_path.glob(".*"))


def test_predict_fills_the_holes_of_a_file_and_keeps_what_is_known(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    truth = np.einsum("ar,br,cr->abc", *(rng.normal(size=(n, 2)) for n in (12, 10, 8)))
    seen = np.where(rng.random(truth.shape) < 0.5, truth, np.nan)
    np.save(tmp_path / "holes.npy", seen)
    source = from_file(tmp_path / "holes.npy")
    more = ["data.observed=0.9", "train.steps=300", "network.init=data", "train.log_every=50"]
    run_dir = tmp_path / "run"
    result = invoke("train", small_config(tmp_path), f"run.dir={run_dir}", *source, *more, "optim.method=base")
    assert result.exit_code == 0, result.output
    assert invoke("predict", run_dir, "-o", tmp_path / "filled.npz").exit_code == 0
    with np.load(tmp_path / "filled.npz") as file:
        filled = file["tensor"]
    holes = np.isnan(seen)
    assert np.array_equal(filled[~holes], seen[~holes])
    assert np.square(filled - truth)[holes].sum() < 0.01 * np.square(truth[holes]).sum()


def test_wandb_offline_mirrors_the_run(tmp_path: Path) -> None:
    command = ("train", small_config(tmp_path), f"run.dir={tmp_path}/run", "wandb.mode=offline")
    result = run(alone(*command), WANDB_SILENT="true")
    assert result.returncode == 0, result.stderr
    assert "W&B failed" not in result.stderr
    assert len(list((tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb"))) == 1


def test_training_goes_on_when_wandb_cannot_be_reached(tmp_path: Path) -> None:
    command = ("train", small_config(tmp_path), f"run.dir={tmp_path}/run", "wandb.mode=online")
    home = {"HOME": str(tmp_path), "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "", "NETRC": "/dev/null"}
    result = run(alone(*command), **home)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("distsam: W&B failed, the run goes on without it: ") == 1
    assert (tmp_path / "run" / "summary.json").exists()


def test_early_stopping_ends_the_run_and_scores_the_best_weights(tmp_path: Path) -> None:
    overrides = ["train.early_stopping=2", "train.steps=5000", "train.log_every=5", "optim.lr=0.2"]
    result = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/run", *overrides)
    assert result.exit_code == 0, result.output
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["stopped_by"] == "early stopping"
    assert summary["best_step"] == summary["steps"] - 10
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    best = max(row["validation/r2"] for row in rows if row["train/step"] > 1)
    assert summary["validation/r2"] == pytest.approx(best, rel=1e-9)


def test_the_last_weights_are_the_best_while_they_are_and_no_longer(tmp_path: Path) -> None:
    """Step 20 is evaluated only because training ends there; the resume that makes it worse must forget it."""
    run_dir, keys = tmp_path / "run", ["train.eval_every=7", "train.steps=20", "data.validation=0.2"]
    result = invoke("train", small_config(tmp_path), f"run.dir={run_dir}", *keys)
    assert result.exit_code == 0, result.output
    summary = json.loads((run_dir / "summary.json").read_text())
    assert (summary["best_step"], summary["weights"]) == (20, "best")
    assert summary["heldout/r2"] == summary["last/heldout/r2"]
    keys[1:2] = ["train.steps=21", "train.resume=auto", "optim.lr=10"]
    result = invoke("train", small_config(tmp_path), f"run.dir={run_dir}", *keys)
    assert result.exit_code == 0, result.output
    worse = json.loads((run_dir / "summary.json").read_text())
    assert worse["last/validation/r2"] < summary["validation/r2"]
    assert (worse["best_step"], worse["weights"]) == (14, "best")
    assert worse["heldout/r2"] > worse["last/heldout/r2"]


def test_a_validation_share_without_r2_does_not_stop_training_early(tmp_path: Path) -> None:
    """An undefined R2 counted as one that is no better, and training ended after so many evaluations."""
    overrides = ["data.validation=0.01", "train.early_stopping=2", "train.log_every=5", "train.steps=40"]
    result = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/run", *overrides)
    assert result.exit_code == 0, result.output
    assert "all 1 validation values are" in result.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert (summary["steps"], summary["stopped_by"], summary["weights"]) == (40, "last step", "last")


def test_how_often_das_hit_its_bound_is_published(tmp_path: Path) -> None:
    overrides = ["optim.alpha=100.0", "optim.lambda_max=0.001"]
    result = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/run", *overrides)
    assert result.exit_code == 0, result.output
    counts = [row["das/clipped"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    assert counts == sorted(counts)
    assert counts[0] == 0 < counts[1]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["das/clipped"] == counts[-1]
    result = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/sam", "optim.method=sam")
    assert result.exit_code == 0, result.output
    assert "das/clipped" not in (tmp_path / "sam" / "metrics.jsonl").read_text()


def test_a_run_says_at_its_start_what_it_is_and_what_is_hardly_meant(tmp_path: Path) -> None:
    result = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/run", "optim.method=sam")
    assert result.stdout.startswith("cp network of 8 x 6 x 4, 36 parameters; 103 training, 12 validation, ")
    assert result.stderr == "distsam: optim.alpha: 0.01 is not used by optim.method=sam; it is for das, nbar, obar\n"
