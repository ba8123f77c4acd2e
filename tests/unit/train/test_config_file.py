import json
import os
import re
from pathlib import Path

import pytest

from distsam.errors import InputError
from distsam.train.config import section_forms
from distsam.train.config_errors import all_keys
from distsam.train.config_file import load_config, read_yaml, to_yaml
from distsam.train.parts import METHODS

MINIMAL = """
data: {source: covid19_serology}
network: {format: tucker, ranks: [8, 6, 8]}
train: {steps: 100}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(MINIMAL)
    return file


def test_overrides_win_and_the_last_one_counts(path: Path) -> None:
    config = load_config(path, ["train.steps=5", "optim.lr=1e-3", "train.steps=7", "network.ranks=[2,2,2]"])
    assert (config.train.steps, config.optim.lr, config.network.ranks) == (7, 1e-3, [2, 2, 2])


def test_run_dir_is_named_after_the_config_file(path: Path) -> None:
    assert load_config(path).run.dir == "runs/small"


def test_data_path_is_found_from_another_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    config = load_config(path, ["data.source=file", "data.path=x.npz"])
    assert config.data.path == str(path.parent / "x.npz")


def test_resolved_config_loads_to_itself(path: Path, tmp_path: Path) -> None:
    config = load_config(path, ["optim.alpha=0.1", "run.dir=${data.source}"])
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    assert load_config(saved).model_dump() == config.model_dump()
    assert config.run.dir == "covid19_serology"


def test_an_empty_section_takes_its_defaults(path: Path) -> None:
    assert load_config(path, ["wandb=null"]).wandb.mode == "disabled"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("optim.rh=1", "optim.rh: unknown key; did you mean optim.rho?"),
        ("optm.rho=1", "optm: unknown section; did you mean optim?"),
        ("optim.steps=3", "optim.steps: unknown key; did you mean train.steps?"),
        ("lr=3", "lr: unknown key; did you mean optim.lr?"),
        ("optim.rho=-1", "optim.rho: -1 is not valid; must be >= 0"),
        ("optim.rho=.nan", "optim.rho: nan is not valid; must be a finite number"),
        ("train.steps=abc", "train.steps: 'abc' is not valid; must be a whole number"),
        ("train.steps=1.5", "train.steps: 1.5 is not valid; must be a whole number"),
        ("train.steps=true", "train.steps: True is not valid; must be a whole number"),
        ("train.steps=0", "train.steps: 0 is not valid; must be >= 1"),
        ("train.steps.x=3", "train.steps: {'x': 3} is not valid; must be a whole number"),
        ("optim.lr=null", "optim.lr: null is not valid; must be a number"),
        ("run.dir=2024", "run.dir: 2024 is not valid; must be a text (quote numbers)"),
        ("data.observed=0", "data.observed: 0 is not valid; must be > 0"),
        ("data.observed=1.01", "data.observed: 1.01 is not valid; must be <= 1"),
        ("network.ranks=[1,0]", "network.ranks[1]: 0 is not valid; must be >= 1"),
        ("network.bond_dim=a", "network.bond_dim: 'a' is not used by network.format=tucker; it is for cp, tt, tr, and"),
        ("optim=3", "optim: 3 is not valid; must be a section with keys"),
        ("data=null", "data.source: is missing; A data set that installs"),
        ("wandb.mode=off", "wandb.mode: False is not valid; must be one of disabled, offline, online (YAML reads"),
        ("run.seed", "run.seed: is no override; write section.key=value"),
        ("=3", "=3: is no override"),
        ("optim.lr=[1,", "optim.lr: '[1,' cannot be read"),
        ("optim.lr=${no.such}", "optim.lr: cannot be resolved: Interpolation key 'no.such' not found"),
        ("optim.lr=???", "optim.lr: cannot be resolved: Missing mandatory value"),
        ("optim.method=sam+dos", "optim.method: 'sam+dos' is unknown; must be one of base, sam"),
        ("optim.method=sam+base", "optim.method: 'sam+base' is no sum; base stands alone"),
        ("optim.method=das+nbar", "optim.method: 'das+nbar' rescales twice"),
        ("optim.method=das", "optim.alpha: is missing; optim.method=das needs"),
        ("optim.momentum=0.9", "optim.momentum: 0.9 is not used by optim.base=adam; it is for sgd; leave it out"),
        (
            "network.bond_dim=3",
            "network.bond_dim: 3 is not used by network.format=tucker; it is for cp, tt, tr, and tucker takes",
        ),
        ("network.ranks=null", "network.ranks: is missing; network.format=tucker needs it"),
        ("data.source=file", "data.path: is missing; data.source=file needs it: The .npy or .npz file"),
        ("data.path=x.npz", "data.path: 'x.npz' is not used by data.source=covid19_serology"),
        ("data.source=lowrank", "data.equation: is missing; data.source=lowrank needs it"),
        ("data.split=fibres", "data.fibre_mode: is missing"),
        ("data.seed=1", "data.seed: 1 is not used by data.source=covid19_serology; it is for lowrank"),
        ("data.noise=0.1", "data.noise: 0.1 is not used by data.source=covid19_serology; it is for lowrank"),
        ("optim.norm=global", "optim.norm: 'global' is not used by optim.method=sam; it is for das"),
        ("optim.lambda_max=0.2", "optim.lambda_max: 0.2 is not used by optim.method=sam; it is for das"),
        ("optim.lr=nan", "optim.lr: 'nan' is not valid; must be a finite number"),
        ("optim.lr=-Inf", "optim.lr: '-Inf' is not valid; must be a finite number"),
        ("network.sizes={a:2}", "network.sizes: {'a:2': None} is not used by network.format=tucker; it is for einsum"),
        ("optim.final_lr=0.1", "optim.final_lr: 0.1 is not used by optim.schedule=constant; set optim.schedule to"),
        ("optim.final_rho=0.1", "optim.final_rho: 0.1 is not used by optim.rho_schedule=constant"),
        ("optim.warmup_steps=100", "optim.warmup_steps: 100 is not below train.steps=100: the schedule is longer"),
        ("optim.rho_warmup_steps=101", "optim.rho_warmup_steps: 101 is not below train.steps=100"),
        ("optim.clip_norm=0", "optim.clip_norm: 0 is not valid; must be > 0"),
        ("optim.clip_norm=-1", "optim.clip_norm: -1 is not valid; must be > 0"),
        ("train.accumulate=0", "train.accumulate: 0 is not valid; must be >= 1"),
        (
            "task.target=m:f",
            "data.source: 'covid19_serology' is not used by task.kind=target, but by completion; a task",
        ),
        ("optm.lr.x=1", "optm: unknown section; did you mean optim?"),
        ("optim.zzz=1", "optim.zzz: unknown key; known here: optim.method, "),
        ("task.kind=compleion", "task.kind: 'compleion' is not valid; must be one of completion, class"),
        ("sharding.replicas=2", "sharding.replicas: 2 is not used by sharding.plan=auto; it is for fsdp"),
    ],
)
def test_a_mistake_is_one_line_with_key_value_and_remedy(path: Path, override: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load_config(path, [override])
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("formatting", "key"),
    [("cp", "bond_dim"), ("tt", "bond_dim"), ("tr", "bond_dim"), ("einsum", "equation")],
)
def test_a_format_without_its_size_is_refused(path: Path, formatting: str, key: str) -> None:
    with pytest.raises(InputError, match=f"network.{key}: is missing"):
        load_config(path, [f"network.format={formatting}", "network.ranks=null"])


def test_defaults_of_keys_that_are_not_used_may_stand(path: Path) -> None:
    """A config of before, or one that serves several parts, holds keys of parts that were not chosen."""
    config = load_config(path, ["data.seed=0", "data.noise=0.0", "optim.scope=global", "optim.method=base"])
    assert (config.optim.method, config.optim.rho) == ("base", 0.05)


def test_a_scope_without_sam_is_refused(path: Path) -> None:
    with pytest.raises(InputError, match=r"optim.scope: 'core' is not used by optim.method=base; it is for sam"):
        load_config(path, ["optim.method=base", "optim.scope=core"])


def test_a_mistake_in_the_file_names_the_file_and_one_on_the_command_line_does_not(path: Path) -> None:
    path.write_text(MINIMAL.replace("steps", "step"))
    with pytest.raises(InputError) as caught:
        load_config(path, ["optim.lr=0.1"])
    assert str(caught.value).startswith(f"{path}: train.step: unknown key; did you mean train.steps?")
    path.write_text(MINIMAL)
    with pytest.raises(InputError, match=r"^optim.lr: "):
        load_config(path, ["optim.lr=-1"])


def test_early_stopping_needs_validation_entries(path: Path) -> None:
    with pytest.raises(InputError, match=r"train.early_stopping: 3 needs data.validation > 0"):
        load_config(path, ["train.early_stopping=3", "data.validation=0"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1, 2", "cannot be read as YAML"),
        ("- 1", "must be a mapping of sections"),
        ("data: {source: il2}\ndata: {}\n", "cannot be read as YAML: .*duplicate key"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
    ],
)
def test_a_file_that_is_no_config_is_refused(tmp_path: Path, content: str | bytes, message: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=message) as caught:
        load_config(file)
    assert str(caught.value).startswith(str(file))
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone.yaml: no such config file"):
        load_config(tmp_path / "gone.yaml")
    with pytest.raises(InputError, match="is a folder"):
        load_config(tmp_path)


def test_methods_split_into_their_parts() -> None:
    assert [part.word for part in METHODS.split("das + sam")] == ["sam", "das"], "the outermost first"
    assert METHODS.split("base") == ()
    with pytest.raises(InputError, match="names a part twice"):
        METHODS.split("sam+sam")


def test_the_keys_that_others_script_against_are_there() -> None:
    promised = {
        "run": ("dir", "seed"),
        "data": ("source", "path", "observed"),
        "network": ("format", "bond_dim", "ranks"),
        "optim": ("method", "base", "lr", "weight_decay", "rho", "alpha"),
        "sharding": ("plan",),
        "train": ("steps", "batch_size", "log_every", "resume"),
        "wandb": ("mode",),
    }
    assert {f"{section}.{key}" for section, keys in promised.items() for key in keys} <= set(
        all_keys(section_forms({}))
    )


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["network.format=cp", "network.ranks=null", "network.bond_dim=a"], "a whole number"),
        (["network.format=tt", "network.ranks=null", "network.bond_dim=a"], "a whole number or a list"),
        (["network.format=tt", "network.ranks=null", "network.bond_dim=[0]"], "network.bond_dim: .* must be"),
        (
            ["network.format=einsum", "network.ranks=null", "network.equation='a->a'", "network.sizes={a:2}"],
            r"network.sizes\[a:2\]: needs a space after each colon, as in {a: 2}",
        ),
        (["train.precision=bf16", "network.dtype=float64"], "network.dtype: float64 contradicts train.precision=bf16"),
    ],
)
def test_keys_of_parts_are_checked_with_them(path: Path, overrides: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_config(path, overrides)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("train: " + "[" * 300 + "]" * 300, "cannot be read as YAML: it is nested too deep"),
        ("train: {steps: " + "9" * 6000 + "}", "cannot be read as YAML: "),
        ("- 1\n" * 300_000, "has 1200000 bytes; a config has at most 1048576"),
    ],
    ids=["deep", "digits", "large"],
)
def test_yaml_that_cannot_be_a_config_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    """Each ended in a traceback, or took minutes."""
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    with pytest.raises(InputError) as caught:
        load_config(file)
    assert str(caught.value).startswith(f"{file}: {says}")
    assert len(str(caught.value)) < 400 + len(str(file))


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no regular file"):
        load_config(tmp_path / "pipe")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("optim.wd=1", "optim.weight_decay"), ("optim.learning_rate=1", "optim.lr"), ("train.epochs=3", "train.steps")],
)
def test_what_other_programs_call_it_is_understood(path: Path, given: str, meant: str) -> None:
    """optim.wd was taken for a misspelt lr."""
    with pytest.raises(InputError, match=f"unknown key; did you mean {re.escape(meant)}\\?"):
        load_config(path, [given])


@pytest.mark.parametrize("name", ["a #b.npy", "a${b}.npy", r"a\${b}.npy", r"a\\${b}", "${a}${b}", "a: b", "'a'"])
def test_any_name_of_a_file_is_saved_and_read_again_as_it_is(path: Path, tmp_path: Path, name: str) -> None:
    """After " #" a name was cut off; a folder called a${b} made a run that could not be evaluated."""
    quoted = name if "#" in name else json.dumps(name.replace("\\", "\\\\").replace("${", "\\${"))
    config = load_config(path, ["data.source=file", f"data.path={quoted}"])
    assert Path(config.data.path).name == name
    saved = tmp_path / "config.yaml"
    saved.write_text(to_yaml(config))
    assert load_config(saved).data.path == config.data.path
    assert read_yaml(saved)["data"]["path"] == config.data.path


def test_a_missing_space_in_the_arguments_is_named(tmp_path: Path) -> None:
    """YAML reads {width:3} as the key 'width:3' with no value."""
    file = tmp_path / "own.yaml"
    file.write_text("task: {target: 'mine:make', arguments: {width:3}}\ntrain: {steps: 2}\n")
    with pytest.raises(InputError, match=r"task.arguments: 'width:3' needs a space after the colon"):
        load_config(file)


def test_a_target_needs_neither_data_nor_network(tmp_path: Path) -> None:
    file = tmp_path / "own.yaml"
    file.write_text("task: {target: 'mine:make', arguments: {width: 3}}\ntrain: {steps: 2}\n")
    config = load_config(file)
    assert (config.task.kind, config.task.target, config.task.arguments) == ("target", "mine:make", {"width": 3})
    assert not hasattr(config, "data")
    with pytest.raises(
        InputError, match=r"train.batch_size: .* is not used by task.kind=target, but by completion; a task of your own"
    ):
        load_config(file, ["train.batch_size=3"])


def test_a_mapping_that_is_given_replaces_the_files(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "task: {kind: classification}\ndata: {source: digits}\ntrain: {steps: 1}\n"
        "model: {kind: mlp, tensorize: {'1': {rank: 2}}}\n"
    )
    assert load_config(path, ["model.tensorize={'4': {rank: 3}}"]).model.tensorize == {"4": {"rank": 3}}
    assert load_config(path, ["model.tensorize.4={rank: 3}"]).model.tensorize == {"1": {"rank": 2}, "4": {"rank": 3}}
