import math

from distsam.train.studies.sampler import importances, suggest
from distsam.train.studies.space import Space, parse_space

SPACES = {
    "optim.lr": parse_space("optim.lr", "log:0.001:1"),
    "network.format": Space("choice", choices=("cp", "tucker", [3, 3])),
    "network.bond_dim": parse_space("network.bond_dim", "logint:1:64"),
}


def searched(count: int) -> list[tuple[dict[str, object], float]]:
    """A search for lr 0.1 and a list as the choice; the bond does nothing."""
    tried: list[tuple[dict[str, object], float]] = []
    for index in range(count):
        values = suggest(SPACES, tried, seed=index)
        off = abs(math.log10(values["optim.lr"]) + 1)
        tried.append((values, -off - (values["network.format"] != [3, 3]) / 10))
    return tried


def test_later_settings_are_better_than_the_first_ones():
    tried = searched(30)
    first, last = [score for _, score in tried[:8]], [score for _, score in tried[-8:]]
    assert sorted(last)[4] > sorted(first)[4]
    assert searched(3) == tried[:3]  # a search that was killed goes on as if it had not been


def test_settings_stay_in_their_spaces():
    for values, _ in searched(12):
        assert 0.001 <= values["optim.lr"] <= 1
        assert values["network.format"] in SPACES["network.format"].choices
        assert 1 <= values["network.bond_dim"] <= 64


def test_what_mattered_is_found():
    shares = importances(SPACES, searched(40))
    assert max(shares, key=shares.__getitem__) == "optim.lr"
    assert math.isclose(sum(shares.values()), 1.0)


def test_settings_that_diverged_are_avoided_and_raise_nothing():
    tried = [({"optim.lr": lr, "network.format": "cp", "network.bond_dim": 4}, -math.inf) for lr in (0.5, 0.9)]
    assert suggest(SPACES, tried, seed=3)["optim.lr"] <= 1


def test_of_a_few_settings_nothing_is_said():
    assert importances(SPACES, searched(5)) == {}
