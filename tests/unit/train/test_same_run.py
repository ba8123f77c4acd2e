from pathlib import Path

import pytest

from distsam.errors import InputError
from distsam.runs.checkpoints import seal
from distsam.runs.folder import RunFolder
from distsam.train.config import Config, validate
from distsam.train.config_file import to_yaml
from distsam.train.same_run import check_folder, fingerprint


def config_of(path: Path, **train: object) -> Config:
    return validate(
        {
            "run": {"dir": str(path)},
            "data": {"source": "il2"},
            "network": {"format": "cp", "bond_dim": 2},
            "train": {"steps": 10, **train},
        }
    )


def start_run(path: Path, config: Config) -> RunFolder:
    path.mkdir(parents=True)
    folder = RunFolder(path)
    folder.config.write_text(to_yaml(config))
    return folder


def test_a_new_folder_and_one_with_other_files_may_be_used(tmp_path: Path) -> None:
    (tmp_path / "slurm.out").write_text("")
    check_folder(RunFolder(tmp_path), config_of(tmp_path))
    check_folder(RunFolder(tmp_path / "a" / "b"), config_of(tmp_path))


def test_a_folder_that_holds_a_run_is_refused(tmp_path: Path) -> None:
    folder = start_run(tmp_path / "run", config_of(tmp_path))
    with pytest.raises(InputError, match=r"holds a run already; choose another run.dir, or set train.resume=auto"):
        check_folder(folder, config_of(tmp_path))


def test_resume_may_change_steps_cadence_and_place(tmp_path: Path) -> None:
    folder = start_run(tmp_path / "run", config_of(tmp_path))
    check_folder(folder, config_of(tmp_path, resume="auto", log_every=3))
    grown = config_of(tmp_path / "elsewhere", resume="auto").model_dump()
    grown["train"]["steps"] = 20
    grown["sharding"]["plan"] = "fsdp"
    grown["optim"]["lr"] = 0.5
    check_folder(folder, validate(grown))


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("network", "bond_dim", 3, "network.bond_dim: 3 differs from the run in .*, where it is 2;"),
        ("data", "source", "kinetic", "data.source: 'kinetic' differs .* where it is 'il2';"),
        ("data", "observed", 0.5, "data.observed: 0.5 differs"),
        ("optim", "method", "base", "optim.method: 'base' differs .* where it is 'sam'"),
        ("optim", "base", "sgd", "optim.base: 'sgd' differs"),
        ("run", "seed", 1, "run.seed: 1 differs .* where it is 0"),
        ("train", "batch_size", 4, "train.batch_size: 4 differs .* where it is None"),
        ("train", "loss", "sum", "train.loss: 'sum' differs .* where it is 'mean'"),
        # Weights in float64 with the float32 state of Adam ended in torch's own traceback.
        ("train", "precision", "float64", "train.precision: 'float64' differs .* where it is None"),
    ],
)
def test_resume_from_another_run_names_the_first_difference(
    tmp_path: Path, section: str, key: str, value: object, message: str
) -> None:
    folder = start_run(tmp_path / "run", config_of(tmp_path))
    changed = config_of(tmp_path, resume="auto").model_dump()
    changed[section][key] = value
    with pytest.raises(InputError, match=message):
        check_folder(folder, validate(changed))
    assert fingerprint(validate(changed)) != fingerprint(config_of(tmp_path))


def test_checkpoints_of_which_none_is_whole_are_no_run(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-00000001.tmp").mkdir(parents=True)
    for resume in ("never", "auto"):
        check_folder(RunFolder(tmp_path), config_of(tmp_path, resume=resume))


def test_a_whole_checkpoint_without_config_is_refused(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / ".metadata").write_text("")
    seal(checkpoint, {})
    with pytest.raises(InputError, match=r"has no config.yaml"):
        check_folder(RunFolder(tmp_path), config_of(tmp_path, resume="auto"))


def test_a_run_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be a folder, because .*file is a file"):
        check_folder(RunFolder(tmp_path / "file" / "run"), config_of(tmp_path))


def test_a_run_folder_with_a_file_in_the_place_of_the_checkpoints_is_refused(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("")
    with pytest.raises(InputError, match=r"run.dir: .* holds a file checkpoints; choose another folder"):
        check_folder(RunFolder(tmp_path), config_of(tmp_path))


def test_a_saved_config_whose_sections_are_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("data: [1, 2]\nnetwork: 3\n")
    with pytest.raises(InputError, match=r"differs from the run in .*, where it is absent"):
        check_folder(RunFolder(tmp_path), config_of(tmp_path, resume="auto"))
