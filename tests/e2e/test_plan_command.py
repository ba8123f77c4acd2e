"""`distsam plan` as it is typed: its table, its JSON, and its refusals."""

import json
import subprocess
from pathlib import Path

import pytest
from command_line import LIMIT_S, alone, environment, invoke, small_config

KEYS = {
    "world_size",
    "rank",
    "plan",
    "mesh",
    "num_parameters",
    "num_trained",
    "bytes",
    "collectives",
    "time_s",
    "sam_share",
    "empty_pieces",
    "flops",
    "flops_per_s",
    "link",
    "simulated_world_size",
    "reasons",
}


def test_the_table_says_what_a_rank_holds_and_sends(tmp_path: Path) -> None:
    done = invoke("plan", small_config(tmp_path), "sharding.plan=fsdp", "--world-size", 2, "--rank", 1)
    assert done.exit_code == 0, done.output
    lines = done.output.splitlines()
    assert lines[0] == "plan fsdp on a mesh of 2 (shard); 36 of 36 parameters trained"
    held = {line[:22].strip(): line.split() for line in lines if line.startswith("  ")}
    # 36 float64, half of them here.
    assert "144" in held["cores"]
    assert held["all_gather"][1:3] == ["4", "2"]
    assert lines[-1] == "rank 1 has an empty piece of: nothing"


def test_json_is_one_object_of_numbers(tmp_path: Path) -> None:
    command = alone("plan", small_config(tmp_path), "--world-size", 4, "--rank", 3, "--link", "ethernet", "--json")
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=LIMIT_S, env=environment(), cwd=tmp_path
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert set(found) == KEYS
    assert found["mesh"] == {"replicate": 4}
    assert found["bytes"]["cores"] == found["bytes"]["sam_copy"] == 8 * 36
    assert found["sam_share"]["bytes_sent"] == 0.5
    assert found["link"]["name"] == "ethernet"
    assert found["time_s"]["total"] == pytest.approx(sum(row["time_s"] for row in found["collectives"]), rel=0.5)
    assert not (tmp_path / "runs").exists()


def test_a_world_beyond_those_that_are_simulated_is_said_to_be_planned_by_formulas(tmp_path: Path) -> None:
    done = invoke("plan", small_config(tmp_path), "--world-size", 4096)
    assert done.exit_code == 0, done.output
    assert "by formulas" in done.output
    assert "simulated on 1,024 ranks" in done.output


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--world-size", 0], "--world-size: 0"),
        (["--rank", -1], "--rank: -1"),
        (["--world-size", 17, "sharding.plan=fsdp"], "sharding.plan: fsdp: no core has a dim that 17 ranks divide"),
        (["train.stepz=3"], "train.stepz: unknown key"),
        (["engine.kind=deepspeed", "engine.stage=1", "network.dtype=float32"], "engine.kind: deepspeed"),
        (["--link", "usb"], "--link: 'usb' is unknown"),
        (["--tflops", 0], "--tflops: 0"),
        (["--save", "plan.txt"], "--save: plan.txt must end in .json"),
        (["sharding.plan=none.json"], "none.json: cannot be read (No such file or directory); save one with distsam"),
        (["sharding.memory_gib=1e-6"], "sharding.memory_gib gives 1.05 KiB; no plan fits on 1 rank: start more"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(tmp_path: Path, arguments: list[object], problem: str) -> None:
    done = invoke("plan", small_config(tmp_path), *arguments)
    assert done.exit_code == 2
    assert problem in done.stderr
    assert done.stderr.count("\n") == 1
