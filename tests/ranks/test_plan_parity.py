"""On every plan ten steps give the weights of one process: every format and layer, sizes that nothing divides."""

from functools import cache

import numpy as np
import pytest
from plan_cases import METHODS, Zoo, train_zoo, train_zoo_by_kernels
from rank_pool import RankPool

# Sums over pieces round differently: a few units in the last place per step.
TOLERANCE = {"float64": 1e-12, "float32": 1e-6}
CASES = [*((method, "float64") for method in METHODS), ("sam", "float32")]
every_case = pytest.mark.parametrize(("method", "dtype"), CASES)
# On four ranks the sum of all methods always, what it consists of in the soak.
some_cases = pytest.mark.parametrize(
    ("method", "dtype"),
    [case if case == ("sam+das", "float64") else pytest.param(*case, marks=pytest.mark.soak) for case in CASES],
)


@cache
def alone(method: str, dtype: str) -> dict[str, np.ndarray]:
    return train_zoo("replicate", method, dtype)


def assert_same(got: dict[str, np.ndarray], method: str, dtype: str) -> None:
    expected = alone(method, dtype)
    scale = max(float(np.abs(value).max()) for value in expected.values())
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert float(np.abs(got[name] - value).max()) < TOLERANCE[dtype] * scale, name


@every_case
@pytest.mark.parametrize("plan", ["replicate", "fsdp", "uneven", "bond"])
def test_two_ranks_train_the_weights_of_one_process(two_ranks: RankPool, plan: str, method: str, dtype: str) -> None:
    for got in two_ranks.run(train_zoo, plan, method, dtype):
        assert_same(got, method, dtype)


@pytest.mark.parametrize("plan", ["replicate", "fsdp", "bond"])
def test_rows_joined_by_kernels_train_the_same_weights(two_ranks: RankPool, plan: str) -> None:
    for got, calls in two_ranks.run(train_zoo_by_kernels, plan):
        assert_same(got, "sam", "float64")
        assert calls >= 20


@some_cases
@pytest.mark.parametrize("plan", ["replicate", "fsdp:2", "uneven", "bond", "bond:2", "fsdp+bond"])
def test_four_ranks_train_the_weights_of_one_process(four_ranks: RankPool, plan: str, method: str, dtype: str) -> None:
    for got in four_ranks.run(train_zoo, plan, method, dtype):
        assert_same(got, method, dtype)


def test_the_methods_that_are_compared_give_different_weights() -> None:
    import torch

    ends = [alone(method, "float64") for method in METHODS]
    starts = {name: p.detach().numpy() for name, p in Zoo(torch.float64).named_parameters()}
    for n, end in enumerate(ends):
        for other in (starts, *ends[:n]):
            assert max(float(np.abs(end[name] - other[name]).max()) for name in starts) > 1e-4
