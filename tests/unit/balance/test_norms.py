"""Squared norms: right to what their docstring says, for long and short, empty and half tensors."""

import pytest
import torch
from torch import Tensor

from distsam.balance import Meter
from distsam.balance.norms import LONGEST_COPY, inner_products, norms

CPU = torch.device("cpu")


def squared_norms(tensors: list[Tensor], is_exact: bool = False) -> Tensor:
    """As the meter squares them: in float64."""
    return norms(tensors, is_exact).double().square()


@pytest.mark.parametrize("count", [0, 1, 4095, 4 * 4096 + 1, 1_000_003])
@pytest.mark.parametrize(("is_exact", "tolerance"), [(False, 2e-7), (True, 1e-12)])
def test_float32_norms_keep_their_accuracy_at_any_length(count: int, is_exact: bool, tolerance: float) -> None:
    x = torch.randn(count, generator=torch.Generator().manual_seed(count)) + 1
    expected = float(x.double().square().sum())
    assert float(squared_norms([x], is_exact)) == pytest.approx(expected, rel=tolerance)


def test_mixed_dtypes_and_empty_tensors_share_one_list() -> None:
    tensors = [
        torch.full((3,), 2.0, dtype=torch.float64),
        torch.empty(0, 5),
        torch.full((4,), 300.0, dtype=torch.float16),  # 300^2 does not fit in float16
        torch.full((2,), 1.0, dtype=torch.bfloat16),
    ]
    assert squared_norms(tensors).tolist() == pytest.approx([12.0, 0.0, 360000.0, 2.0], rel=2e-7)


def test_no_cores_have_no_norms() -> None:
    assert Meter([torch.nn.Parameter(torch.ones(2))], []).core_norms_sq().shape == (0,)


def test_inner_products_of_half_tensors_do_not_overflow() -> None:
    x = torch.full((4,), 300.0, dtype=torch.float16)
    assert inner_products([x], [x], CPU).tolist() == [360000.0]


def test_long_and_short_tensors_keep_their_places() -> None:
    sizes = [3, 20_000, 5, 30_000, 7]
    tensors = [torch.full((n,), 2.0) for n in sizes]
    assert squared_norms(tensors).tolist() == pytest.approx([4.0 * n for n in sizes], rel=1e-4)


def test_long_inner_products_are_found_in_parts() -> None:
    x, y = torch.arange(float(LONGEST_COPY + 3)).view(-1, 1), torch.ones(1, LONGEST_COPY + 3).T
    [got] = inner_products([x], [y], CPU).tolist()
    assert got == (LONGEST_COPY + 3) * (LONGEST_COPY + 2) / 2
