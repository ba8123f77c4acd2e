"""What every rule behind the word auto promises, whichever part brings it."""

import math
from typing import Any

import pytest
import torch

import distsam
from distsam.train import parts
from distsam.train.auto_values import auto_values
from distsam.train.build import build_optimizer
from distsam.train.config import Config, validate
from distsam.train.settled import with_values

WORDS = {word: tuple(part.keys.RULES) for word, part in parts.METHODS.parts.items() if part.keys.RULES}
every_rule = pytest.mark.parametrize(("word", "key"), [(word, key) for word, keys in WORDS.items() for key in keys])


def config_of(method: str, **optim: Any) -> Config:
    return validate(
        {
            "data": {"source": "lowrank", "equation": "ar,br->ab", "sizes": {"a": 4, "b": 3, "r": 2}},
            "network": {"format": "cp", "bond_dim": 2},
            "optim": {"method": method, **optim},
            "train": {"steps": 2},
        }
    )


def model_of(factor: float = 1.0) -> distsam.TensorNetwork:
    generator = torch.Generator().manual_seed(0)
    model = distsam.TensorNetwork(distsam.tt((4, 3, 5), 2), norms=(1, 2, 3), generator=generator)
    with torch.no_grad():
        for core in model.cores:
            core.mul_(factor)
    return model


def test_every_method_of_distsam_has_a_rule() -> None:
    assert {"sam": ("rho",), "das": ("alpha",), "nbar": ("alpha",), "obar": ("alpha",)}.items() <= WORDS.items()


@every_rule
def test_a_rule_gives_a_number_that_the_key_takes_and_the_optimizer_holds(word: str, key: str) -> None:
    model = model_of()
    config = config_of(word, **{key: "auto"})
    [(found, value)] = auto_values(config, model).items()
    assert found == key
    assert 0 < value < math.inf
    assert getattr(config_of(word, **{key: value}).optim, key) == value
    optimizer = build_optimizer(with_values(config, {f"optim.{key}": value}), model)
    assert optimizer.param_groups[0][optimizer.group_key(key)] == value


@every_rule
def test_a_rule_leaves_the_model_as_it_is_and_says_the_same_again(word: str, key: str) -> None:
    model = model_of()
    before = [core.detach().clone() for core in model.cores]
    config = config_of(word, **{key: "auto"})
    assert auto_values(config, model) == auto_values(config, model)
    assert all(torch.equal(a, b) for a, b in zip(before, model.cores, strict=True))


@every_rule
def test_a_rule_goes_with_the_weights(word: str, key: str) -> None:
    """Another unit of the weights gives another number: a constant is what the user could have written."""
    config = config_of(word, **{key: "auto"})
    assert auto_values(config, model_of())[key] != auto_values(config, model_of(10.0))[key]


@every_rule
def test_a_number_is_left_alone(word: str, key: str) -> None:
    config = config_of(word, **{key: 0.25})
    assert auto_values(config, model_of()) == {}
    assert with_values(config, {}) is config
