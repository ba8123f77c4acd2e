"""Every mistake of a user: exit code 2, one line that says what would be right, nothing written."""

import json
import shlex
import subprocess
from pathlib import Path

import numpy as np
import pytest
from command_line import (
    LIMIT_S,
    PACKAGE,
    alone,
    environment,
    from_file,
    invoke,
    on_two_ranks,
    run,
    small_config,
    torchrun,
)

from distsam.runs.checkpoints import seal


def assert_refused(folder: Path, *arguments: object, says: str) -> None:
    before = sorted(folder.rglob("*"))
    result = invoke(*arguments)
    assert result.exit_code == 2, result.output
    [line] = result.stderr.splitlines()
    assert line.startswith("distsam: ")
    assert says in line
    assert result.stdout == ""
    assert sorted(folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("optim.rh=1", "optim.rh: unknown key; did you mean optim.rho?"),
        ("train.steps=abc", "train.steps: 'abc' is not valid; must be a whole number"),
        ("optim.rho=-0.1", "optim.rho: -0.1 is not valid; must be >= 0 or auto"),
        ("optim.rho=automatic", "optim.rho: 'automatic' is not valid; must be a number or auto"),
        ("optim.alpha=Auto", "optim.alpha: 'Auto' is not valid; must be a number or auto"),
        ("optim.alpha=null", "optim.alpha: is missing; optim.method=sam+das needs it"),
        ("optim.lr=automatic", "optim.lr: 'automatic' is not valid; must be a number or auto"),
        ("network.bond_dim=1000", "network.bond_dim"),
        ("network.bond_dim=[2,2]", "bond_dim"),
        ("network.init_norms=[1,2]", "network.init_norms: [1.0, 2.0] has 2 numbers; the network has 3 cores"),
        ("train.batch_size=100000", "train.batch_size: is 100000; it must be 1 to"),
        ("data.observed=0.001", "data.observed: 0.001 "),
        ("data.sizes.a=0", "data.sizes[a]: 0 is not valid; must be >= 1"),
        ("train.batch_size=10 train.accumulate=4", "train.accumulate: "),
        ("optim.clip_norm=0", "optim.clip_norm: 0 is not valid; must be > 0"),
        ("optim.clip_norm=-1", "optim.clip_norm: -1 is not valid; must be > 0"),
        (
            "optim.warmup_steps=20",
            "optim.warmup_steps: 20 is not below train.steps=20: the schedule is longer",
        ),
        ("sharding.device=cuda", "sharding.device: cuda: this machine has no CUDA device; use cpu or auto"),
        ("data.sizes={a:2}", "data.sizes[a:2]: needs a space after each colon, as in {a: 2}"),
    ],
)
def test_a_wrong_value_is_refused(tmp_path: Path, override: str, says: str) -> None:
    config = small_config(tmp_path)
    assert_refused(tmp_path, "train", config, f"run.dir={tmp_path}/run", *override.split(), says=says)


def test_a_missing_config_is_refused(tmp_path: Path) -> None:
    assert_refused(tmp_path, "train", tmp_path / "no.yaml", says=f"{tmp_path}/no.yaml: no such config file")


FULL = np.arange(24.0).reshape(2, 3, 4)
INDICES = np.argwhere(FULL >= 0)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"a": FULL, "b": FULL}, "it must hold one dense array"),
        ({"indices": INDICES, "values": np.arange(3.0), "shape": np.array([2, 3, 4])}, "values"),
        ({"indices": INDICES + 1, "values": FULL.ravel(), "shape": np.array([2, 3, 4])}, "indices"),
        ({"indices": INDICES[:, :2], "values": FULL.ravel(), "shape": np.array([2, 3, 4])}, "indices"),
        ({"tensor": np.full((2, 3, 4), np.nan)}, "all 24 entries are NaN"),
        ({"tensor": FULL.astype(complex)}, "complex"),
        ({"tensor": np.empty((2, 0, 4))}, "size 0"),
        ({"tensor": np.array([None, 1.0], dtype=object)}, "pickle"),
    ],
)
def test_a_file_that_holds_no_tensor_is_refused(tmp_path: Path, arrays: dict[str, np.ndarray], says: str) -> None:
    file = tmp_path / "data.npz"
    np.savez(file, **arrays)
    config = small_config(tmp_path)
    assert_refused(tmp_path, "train", config, f"run.dir={tmp_path}/run", *from_file(file), says=says)


def test_a_missing_data_file_is_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    says = "no.npz': does not exist"
    missing = from_file(tmp_path / "no.npz")
    assert_refused(tmp_path, "train", config, f"run.dir={tmp_path}/run", *missing, says=says)


def test_sizes_that_disagree_with_the_data_are_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    network = [
        "network.format=einsum",
        "network.equation='ar,br,cr->abc'",
        "network.sizes={r: 2, b: 7}",
        "network.bond_dim=null",
    ]
    says = "network.sizes: b is 7; it is mode 1 of the tensor, of size 6"
    assert_refused(tmp_path, "train", config, f"run.dir={tmp_path}/run", *network, says=says)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("finished")
    result = invoke("train", small_config(folder), f"run.dir={folder}/run", "train.steps=5")
    assert result.exit_code == 0, result.output
    return folder


def test_a_second_run_in_a_folder_is_refused(finished: Path) -> None:
    says = "run holds a run already; choose another run.dir, or set train.resume=auto"
    assert_refused(finished, "train", finished / "small.yaml", f"run.dir={finished}/run", says=says)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("network.bond_dim=3", "network.bond_dim: 3 differs from the run in"),
        ("data.seed=1", "data.seed: 1 differs from the run in"),
        ("optim.method=sam", "optim.method: 'sam' differs from the run in"),
        ("train.steps=2", "train.steps: 2 is less than the 5 steps"),
    ],
)
def test_resume_of_another_run_is_refused(finished: Path, override: str, says: str) -> None:
    common = ("train", finished / "small.yaml", f"run.dir={finished}/run", "train.steps=5", "train.resume=auto")
    assert_refused(finished, *common, override, says=says)


def test_resume_with_a_data_file_that_has_changed_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.npy"
    values = np.random.default_rng(0).normal(size=(8, 6, 4))
    np.save(file, values)
    common = [*from_file(file), "train.steps=2"]
    config = small_config(tmp_path)
    assert invoke("train", config, f"run.dir={tmp_path}/run", *common).exit_code == 0
    np.save(file, values + 1)
    says = "step-00000002: is a checkpoint of other data"
    resume = ["train.resume=auto", "train.steps=4"]
    assert_refused(tmp_path, "train", config, f"run.dir={tmp_path}/run", *common, *resume, says=says)


def test_predict_refuses_what_it_cannot_write_or_read(finished: Path, tmp_path: Path) -> None:
    good = ("predict", finished / "run", "-o")
    assert_refused(tmp_path, *good, tmp_path / "out.npy", says="out.npy must end in .npz")
    assert_refused(tmp_path, *good, tmp_path / "no" / "out.npz", says="there is no folder")
    export = ("export", finished / "run", "-o")
    assert_refused(tmp_path, *export, tmp_path / "out.npz", says="out.npz must end in .pt")
    assert_refused(tmp_path, *export, tmp_path / "no" / "out.pt", says="there is no folder")
    assert_refused(tmp_path, "export", tmp_path, "-o", tmp_path / "out.pt", says="is no run folder")
    assert_refused(tmp_path, "predict", tmp_path, "-o", tmp_path / "out.npz", says="is no run folder")
    np.save(tmp_path / "indices.npy", np.array([[0, 0, 99]]))
    entries = ("--entries", tmp_path / "indices.npy")
    assert_refused(tmp_path, *good, tmp_path / "out.npz", *entries, says="99")
    assert_refused(tmp_path, *good, tmp_path / "out.npz", "--entries", tmp_path / "no.npy", says="no.npy")


def test_evaluate_refuses_a_folder_without_a_run_or_checkpoint(finished: Path, tmp_path: Path) -> None:
    assert_refused(tmp_path, "evaluate", tmp_path / "no", says="no: is no run folder")
    (tmp_path / "config.yaml").write_text((finished / "run" / "config.yaml").read_text())
    assert_refused(tmp_path, "evaluate", tmp_path, says="has no checkpoint that can be used")


def test_usage_errors_exit_with_2() -> None:
    assert invoke("train").exit_code == 2
    assert invoke("predict", "somewhere").exit_code == 2
    assert invoke("tarin").exit_code == 2


def test_a_process_alone_prints_one_line_and_no_traceback(tmp_path: Path) -> None:
    result = run(alone("train", small_config(tmp_path), f"run.dir={tmp_path}/run", "optim.rh=1"))
    assert result.returncode == 2
    assert result.stderr == "distsam: optim.rh: unknown key; did you mean optim.rho?\n"
    assert result.stdout == ""
    assert not (tmp_path / "run").exists()


def test_two_ranks_that_a_plan_cannot_use_print_one_line_of_ours(tmp_path: Path) -> None:
    sizes = "data.sizes={a: 7, b: 5, c: 3, r: 3}"
    overrides = [sizes, "network.bond_dim=3", "sharding.plan=fsdp", f"run.dir={tmp_path}/run"]
    result = run(on_two_ranks("train", small_config(tmp_path), *overrides))
    assert result.returncode != 0
    [line] = [text for text in result.stderr.splitlines() if text.startswith("distsam: ")]
    assert "sharding.plan: fsdp: no core has a dim that 2 ranks divide" in line
    assert "exitcode: 2" in " ".join(result.stderr.replace(" :", ":").split()), result.stderr
    assert f'File "{PACKAGE}' not in result.stderr, "a traceback of ours"
    assert not (tmp_path / "run").exists()
    assert result.stdout == ""


def test_a_diverged_run_ends_with_1_and_keeps_its_rows(tmp_path: Path) -> None:
    overrides = ["optim.base=sgd", "optim.lr=1e30", "optim.method=base", "optim.alpha=null", "optim.max_skipped=3"]
    result = invoke("train", small_config(tmp_path), f"run.dir={tmp_path}/run", *overrides)
    assert result.exit_code == 1
    [line] = result.stderr.splitlines()
    assert line.startswith("distsam: step ")
    assert line.endswith("and start anew, or go on from them with train.resume=auto")
    rows = [json.loads(text) for text in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows[0]["train/step"] == 0
    assert not (tmp_path / "run" / "summary.json").exists()


def test_a_home_folder_of_nobody_is_refused(tmp_path: Path) -> None:
    says = "run.dir: ~nobody-at-all/run: nobody is called so here"
    assert_refused(tmp_path, "train", small_config(tmp_path), "run.dir=~nobody-at-all/run", says=says)


LARGE_STEP = ["optim.base=sgd", "optim.lr=3e38", "optim.method=base", "optim.alpha=null", "network.dtype=float32"]


def test_weights_that_left_their_dtype_are_not_kept(tmp_path: Path) -> None:
    """A finite gradient times a large rate gave infinite weights, which were saved as the last finite ones."""
    train = ["train", small_config(tmp_path), f"run.dir={tmp_path}/run", "network.init_std=10", *LARGE_STEP]
    result = invoke(*train, "train.checkpoint_every=1")
    assert result.exit_code == 1
    problem, end = result.stderr.splitlines()
    assert problem.startswith("distsam: the checkpoint of step 1 could not be written: a weight is not finite; ")
    assert "The weights are not finite any more; lower" in end
    assert end.endswith("and start anew")
    assert not any((tmp_path / "run" / "checkpoints").glob("step-*"))
    result = invoke(*train, "train.steps=1", f"run.dir={tmp_path}/one")
    assert result.exit_code == 1
    assert "the checkpoint of step 1 could not be written" in result.stderr


@pytest.mark.parametrize("std", ["1e300", "1e-300"])
def test_a_start_that_its_dtype_cannot_hold_is_refused(tmp_path: Path, std: str) -> None:
    more = [f"network.init_std={std}", "network.dtype=float32", f"run.dir={tmp_path}/run"]
    says = "gives a core factor_0 that torch.float32 cannot hold"
    assert_refused(tmp_path, "train", small_config(tmp_path), *more, says=says)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    """To root every folder looks writable, /proc too: only the attempt tells, in words of its own."""
    config = small_config(tmp_path)
    says = "run.dir: /proc/no/run cannot be written"
    assert_refused(tmp_path, "train", config, "run.dir=/proc/no/run", says=says)


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_run_which_ends_with_1(tmp_path: Path) -> None:
    # No file may be longer than 4 KiB: the weights' is, metrics.jsonl not yet.
    limited = f"ulimit -f 4; exec {shlex.join(alone('train', small_config(tmp_path), f'run.dir={tmp_path}/run'))}"
    result = run(["bash", "-c", f"{limited} train.log_every=100 train.checkpoint_every=1"])
    assert result.returncode == 1, result.stderr
    first, *_, last = result.stderr.splitlines()
    assert first.startswith("distsam: the checkpoint of step 1 could not be written: rank 0: ")
    assert "File too large" in first
    assert first.endswith("training goes on, and it is tried again")
    assert last.startswith("distsam: the run is over, but not all of it is saved: the checkpoint of step 20 could not")


def on_two_ranks_in_folders_of_their_own(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Two ranks, each with the working folder 0 or 1, so that one can lack a file that the other has."""
    entry = "import os\nos.chdir(os.environ['RANK'])\nfrom distsam.cli import main\nmain()\n"
    (folder / "entry.py").write_text(entry)
    command = [*torchrun(), str(folder / "entry.py"), *map(str, arguments)]
    return subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S, check=False, cwd=folder
    )


@pytest.mark.parametrize("missing", ["data.npy", "small.yaml"])
def test_a_file_that_only_the_second_rank_lacks_is_named_with_the_rank(tmp_path: Path, missing: str) -> None:
    """Rank 1 slept and ended without a word; rank 0 waited for it and was killed. Nobody said what was wrong."""
    for rank in ("0", "1"):
        (tmp_path / rank).mkdir()
        small_config(tmp_path / rank)
        np.save(tmp_path / rank / "data.npy", FULL)
    (tmp_path / "1" / missing).unlink()
    overrides = [*from_file(Path("data.npy")), f"run.dir={tmp_path}/run"]
    result = on_two_ranks_in_folders_of_their_own(tmp_path, "train", "small.yaml", *overrides)
    assert result.returncode != 0
    [line] = [text for text in result.stderr.splitlines() if text.startswith("distsam: ")]
    assert line.startswith("distsam: rank 1: ")
    assert missing in line
    assert not (tmp_path / "run").exists()


def test_another_file_of_the_same_name_on_the_second_rank_is_refused(tmp_path: Path) -> None:
    """Each rank trained on what it found: no error, and weights that fit neither file."""
    for rank in (0, 1):
        (tmp_path / str(rank)).mkdir()
        small_config(tmp_path / str(rank))
        np.save(tmp_path / str(rank) / "data.npy", FULL + rank)
    overrides = [*from_file(Path("data.npy")), "network.bond_dim=1", f"run.dir={tmp_path}/run"]
    result = on_two_ranks_in_folders_of_their_own(tmp_path, "train", "small.yaml", *overrides)
    [line] = [text for text in result.stderr.splitlines() if text.startswith("distsam: ")]
    assert line.startswith(f"distsam: rank 1: data.path: {tmp_path}/1/data.npy holds other data than on rank 0")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_saved_run_whose_data_has_changed_is_refused(tmp_path: Path, command: str) -> None:
    """With other data the split is another: entries that were fitted were scored as held out."""
    file = tmp_path / "data.npy"
    values = np.random.default_rng(0).normal(size=(8, 6, 4))
    np.save(file, values)
    run_dir = tmp_path / "run"
    done = invoke("train", small_config(tmp_path), f"run.dir={run_dir}", *from_file(file), "train.steps=2")
    assert done.exit_code == 0, done.output
    np.save(file, values[:, ::-1])
    output = ["-o", tmp_path / "out.npz"] if command == "predict" else []
    assert_refused(
        tmp_path, command, run_dir, *output, says=f"data.path: {file} has changed since the run in {run_dir}"
    )


@pytest.mark.parametrize("damage", ["", "{", "num_skipped", "das/clipped"])
def test_a_damaged_state_of_a_checkpoint_is_named(tmp_path: Path, damage: str) -> None:
    config, run_dir = small_config(tmp_path), tmp_path / "run"
    assert invoke("train", config, f"run.dir={run_dir}", "train.steps=2").exit_code == 0
    state = run_dir / "checkpoints" / "step-00000002" / "state.json"
    content = json.loads(state.read_text())
    is_counter = content["engine"]["counters"].pop(damage, None) is not None
    if is_counter:
        seal(state.parent, content)
    else:
        state.write_text(damage)
    resume = ("train", config, f"run.dir={run_dir}", "train.steps=3", "train.resume=auto")
    cut = f"{state.parent}: is damaged and not used: state.json has {len(damage)} bytes in place of "
    assert_refused(tmp_path, *resume, says=f"{state}: holds no {damage} that" if is_counter else cut)


def test_a_mode_too_large_for_the_machine_is_named_before_memory_is_taken(tmp_path: Path) -> None:
    """A mode of 2**40 ended in a traceback of torch's allocator."""
    indices = np.argwhere(np.ones((3, 4, 5)))
    np.savez(tmp_path / "t.npz", indices=indices, values=np.arange(60.0), shape=[2**40, 7, 8])
    data = ["network.dtype=float32", *from_file(tmp_path / "t.npz"), f"run.dir={tmp_path}/run"]
    says = f"data.path: '{tmp_path}/t.npz': mode 0 of size 1099511627776: the network has 2,199,"
    assert_refused(tmp_path, "train", small_config(tmp_path), *data, says=says)
    sizes = "data.sizes={a: 100000, b: 100000, c: 4000, r: 2}"
    says = "data.sizes: {'a': 100000, 'b': 100000, 'c': 4000, 'r': 2}: needs 873 TiB of memory and "
    assert_refused(tmp_path, "train", small_config(tmp_path), sizes, f"run.dir={tmp_path}/run", says=says)


def test_no_command_is_a_usage_error_that_shows_the_help() -> None:
    result = invoke()
    assert result.exit_code == 2
    assert "train" in result.output
    assert "Usage" in result.output
