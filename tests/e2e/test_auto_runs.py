"""Keys that say auto, from the command line to the run folder and back."""

from pathlib import Path

import pytest
from command_line import alone, invoke, on_two_ranks, run, small_config

from distsam.train.config_file import load_config, read_yaml

KEYS = ("network.bond_dim=auto", "optim.lr=auto", "optim.weight_decay=auto", "optim.method=base", "optim.alpha=null")


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_the_first_line_and_the_folder_hold_the_numbers_and_a_resume_keeps_them(num_ranks: int, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    command = ("train", small_config(tmp_path), f"run.dir={run_dir}", *KEYS)
    done = run((alone if num_ranks == 1 else on_two_ranks)(*command))
    assert done.returncode == 0, done.stderr
    saved = read_yaml(run_dir / "config.yaml")
    bond, lr, decay = saved["network"]["bond_dim"], saved["optim"]["lr"], saved["optim"]["weight_decay"]
    # 103 training entries, 18 parameters a bond.
    assert (bond, lr) == (11, 0.03)
    assert f"; auto: network.bond_dim=11, optim.lr=0.03, optim.weight_decay={decay}" in done.stdout.splitlines()[0]
    resumed = invoke(*command, "train.resume=auto", "train.steps=25")
    assert resumed.exit_code == 0, resumed.output
    assert "resumed after step 20" in resumed.stdout.splitlines()[0]
    again = load_config(run_dir / "config.yaml")
    assert (again.optim.lr, again.optim.weight_decay, again.train.steps) == (lr, decay, 25)
    assert invoke("evaluate", run_dir).exit_code == 0
