import pytest

from distsam.errors import InputError
from distsam.train.studies.space import Space, parse_space, points


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("log:0.01:1", [0.0215, 0.1, 0.464]),
        ("linear:0:3", [0.5, 1.5, 2.5]),
        ("int:1:3", [1, 2, 3]),
        ("a,2,0.5", ["a", 2, 0.5]),
    ],
)
def test_one_key_is_tried_in_equal_steps(text: str, values: list[object]):
    assert [point["k"] for point in points({"k": parse_space("k", text)}, 3)] == values


def test_logint_gives_small_numbers_as_often_as_large_ones():
    space = parse_space("k", "logint:1:64")
    values = [space.at((i + 0.5) / 70) for i in range(70)]
    assert values[0] == space.at(0.0) == 1
    assert space.at(0.9999) == 64
    below_8 = sum(value < 8 for value in values)
    assert 0.4 < below_8 / 70 < 0.6  # half of the way from 0.5 to 64.5 is 5.7


def test_each_of_several_keys_sees_different_values_in_every_trial():
    spaces = {"a": parse_space("a", "log:0.001:1"), "b": parse_space("b", "linear:0:1")}
    found = points(spaces, 7)
    assert len({point["a"] for point in found}) == len({point["b"] for point in found}) == 7
    assert found == points(spaces, 7)


@pytest.mark.parametrize(
    ("text", "value", "expected"),
    [("log:0.01:1", 3, 1), ("log:0.01:1", 0.1, 0.1), ("log:0.01:1", "auto", 0.1), ("a,b", "c", "a"), ("int:2:5", 1, 2)],
)
def test_the_nearest_value_lies_in_the_space(text: str, value: object, expected: object):
    assert parse_space("k", text).nearest(value) == expected


def test_equal_settings_are_tried_once():
    assert points({"k": Space("int", 1, 2)}, 7) == [{"k": 1}, {"k": 2}]


@pytest.mark.parametrize(
    "text",
    ["log:0:1", "log:2:1", "log:1", "exp:1:2", "int:0.5:2", "a,,b", "a,a", "log:x:1", "int:1:inf", "log:0.1:inf"],
)
def test_what_is_no_space_is_refused_with_key_and_value(text: str):
    with pytest.raises(InputError, match=f"optim.lr: '{text}'"):
        parse_space("optim.lr", text)
