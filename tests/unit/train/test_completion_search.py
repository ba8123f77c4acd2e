from math import prod
from types import SimpleNamespace

import pytest

from distsam.tensornet import cp, tr, tt, tucker
from distsam.train.completion_search import first_of_completion, settings_of_completion, spaces_of_completion

SHAPES = [(438, 6, 11), (145, 145, 200), (8, 6, 4), (2, 2), (20, 24, 7, 12), (5, 1, 9)]
BUILD = {"cp": cp, "tt": tt, "tr": tr, "tucker": tucker}


def task(shape: tuple[int, ...], share: float = 0.3) -> SimpleNamespace:
    num_training = int(share * prod(shape))
    return SimpleNamespace(entries=SimpleNamespace(shape=shape), split=SimpleNamespace(train=range(num_training)))


def config(format_: str) -> SimpleNamespace:
    return SimpleNamespace(network=SimpleNamespace(format=format_))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("format_", BUILD)
def test_every_size_is_a_network_that_the_tensor_allows(shape: tuple[int, ...], format_: str):
    sizes = []
    for size in (0.02, 0.1, 0.5, 1.0, 3.0):
        found = settings_of_completion({"network.size": size}, config(format_), task(shape))
        bond = found["network.ranks"] if format_ == "tucker" else found["network.bond_dim"]
        sizes.append(BUILD[format_](shape, bond).num_parameters)
    assert sizes == sorted(sizes)


def test_size_is_the_share_of_parameters_in_training_entries():
    found = settings_of_completion({"network.size": 0.5, "network.format": "cp"}, config("tucker"), task((438, 6, 11)))
    # 0.3 * 438 * 6 * 11 = 8672 entries; half of them over 455 rows is 9.5.
    assert found == {"network.format": "cp", "network.bond_dim": 10, "network.ranks": None}


def test_small_modes_of_a_tucker_network_are_kept_whole():
    found = settings_of_completion({"network.size": 2.0}, config("tucker"), task((438, 6, 11)))
    assert found["network.ranks"][1:] == [6, 11]
    assert found["network.ranks"][0] > 11


@pytest.mark.parametrize(("format_", "order", "formats"), [("cp", 3, True), ("cp", 5, False), ("tt", 3, False)])
def test_formats_are_varied_where_both_can_be_used(format_: str, order: int, formats: bool):
    spaces = spaces_of_completion(config(format_), task((4,) * order))
    assert ("network.format" in spaces) == formats
    assert "network.size" in spaces


def test_an_equation_is_taken_as_it_is():
    assert spaces_of_completion(config("einsum"), task((4, 4))) == {}


def test_the_other_format_and_a_small_network_are_tried_first():
    first = first_of_completion(config("cp"), task((438, 6, 11)))
    assert [values["network.format"] for values in first] == ["tucker", "cp"]
    assert first[1]["network.size"] < 0.1 < first[0]["network.size"]
    assert first_of_completion(config("tt"), task((4, 4, 4))) == []
