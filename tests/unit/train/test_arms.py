from pathlib import Path

import pytest
from shipped import load_shipped

from distsam.errors import InputError
from distsam.train.config import Config
from distsam.train.studies.arms import Arm, check_arms, gradients_per_step, make_arms, read_arms
from distsam.train.studies.space import points

QUICKSTART = Path(__file__).parents[3] / "configs" / "quickstart.yaml"
SHIPPED = ["base", "wd", "l2", "sam", "das", "nbar", "obar", "sam+wd", "sam+das", "config"]


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return load_shipped(QUICKSTART, tmp_path)


def configs_of(arms: list[Arm], config: Config) -> dict[str, Config]:
    return check_arms(arms, config, {arm.name: next(iter(points(arm.spaces, 3)), {}) for arm in arms})


def test_every_shipped_arm_is_a_config_that_runs(config: Config, tmp_path: Path):
    configs = configs_of(make_arms(SHIPPED, config, {}), config)
    seen = {name: (c.optim.method, c.optim.base, c.optim.weight_decay > 0) for name, c in configs.items()}
    assert seen["base"] == ("base", "adam", False)
    assert seen["wd"] == ("base", "adamw", True)
    assert seen["l2"] == ("base", "adam", True)
    assert seen["sam"] == ("sam", "adam", False)
    assert seen["sam+wd"] == ("sam", "adamw", True)
    assert seen["sam+das"] == ("sam+das", "adam", False)
    assert configs["config"].optim.model_dump() == config.optim.model_dump()


def test_all_arms_but_the_config_tune_the_learning_rate(config: Config):
    arms = make_arms(SHIPPED, config, {})
    assert [arm.name for arm in arms if "optim.lr" not in arm.tune] == ["config"]


def test_an_arm_without_a_learning_rate_tunes_none(config: Config):
    als = config.model_copy(update={"optim": config.optim.model_copy(update={"base": "als"})})
    arms = make_arms(["base", "l2", "das"], als, {})
    assert [arm.name for arm in arms if "optim.lr" in arm.tune] == ["das"]
    assert [arm.set["optim.lr"] for arm in arms if "optim.lr" in arm.set] == [1e-3] * 2


def test_only_sam_takes_two_gradients(config: Config, tmp_path: Path):
    configs = configs_of(make_arms(["base", "das", "sam", "sam+das"], config, {}), config)
    assert [gradients_per_step(c) for c in configs.values()] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["base", "smm"], "'smm' is no arm; did you mean sam?"),
        (["base", "sam", "sam"], "sam is there twice"),
        (["base"], "'base' is no comparison"),
        (["base", "wd+l2"], "two kinds of weight decay"),
        (["base", "sam+base"], "'sam\\+base' is no arm"),
    ],
)
def test_names_that_are_no_arms_are_refused(names: list[str], problem: str, config: Config):
    with pytest.raises(InputError, match=problem):
        make_arms(names, config, {})


def test_an_arm_that_equals_another_is_refused(config: Config, tmp_path: Path):
    own = {"mine": Arm("mine", {"optim.method": "sam"})}  # which the config has already
    with pytest.raises(InputError, match="--arms: mine equals config"):
        configs_of(make_arms(["config", "mine"], config, own), config)


def test_a_users_own_arm_is_read(config: Config, tmp_path: Path):
    file = tmp_path / "arms.yaml"
    file.write_text("slow: {set: {optim.lr: 0.001}, tune: {optim.rho: 'log:0.01:0.1'}}\n")
    arms = make_arms(["base", "slow"], config, read_arms(file))
    assert configs_of(arms, config)["slow"].optim.lr == 0.001


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("mine: 3", "mine: 3 is no arm"),
        ("mine: {sets: {}}", "is no arm"),
        ("mine: {set: 3}", "must map section.key"),
        ("a/b: {}", "cannot be the name"),
        ("mine: {tune: {optim.lr: 'log:1'}}", "is no range"),
    ],
)
def test_a_file_of_arms_that_cannot_be_used_is_refused(text: str, problem: str, tmp_path: Path):
    (tmp_path / "arms.yaml").write_text(text)
    with pytest.raises(InputError, match=problem):
        read_arms(tmp_path / "arms.yaml")


def test_an_own_arm_with_an_unknown_key_is_named(config: Config, tmp_path: Path):
    own = {"mine": Arm("mine", {"optim.rhoo": 1.0})}
    with pytest.raises(InputError, match=r"arm mine: optim\.rhoo"):
        configs_of(make_arms(["base", "mine"], config, own), config)
