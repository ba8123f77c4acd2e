"""Squared norms and inner products of many tensors, accurate to float64 where it matters, at float32's cost."""

from collections.abc import Sequence

import torch
from torch import Tensor

# A float32 accumulator is right to 6e-8 over 4,096 elements and only to 2e-5 over a million (measured, CPU). Long
# tensors are therefore summed in rows of this length, and the rows in float64: 5e-8, at the same speed; float64
# throughout takes five times as long.
ROW = 4096
LONG = 4 * ROW


@torch.no_grad()
def squared_norms(tensors: Sequence[Tensor], counts: Tensor, is_exact: bool = False) -> Tensor:
    """(P,) float64 squared Frobenius norms of P local tensors, 0 where one does not count; an empty one has 0.

    Relative error below 2e-7 for float32 and half precision (of equal entries, whose rounding errors do not cancel,
    2e-5); where `is_exact`, and in a list that has a float64 tensor, below 1e-12. Not exact, the squares have float32's
    range: elements above 1e19 give infinity (a step that is skipped), those below 1e-19 lose digits, then vanish.

    Args:
        tensors: P tensors of any shapes and dtypes, on one device.
        counts: (P,) float64, 1 or 0, on that device.
        is_exact: sum in float64 whatever the dtypes.
    """
    if not tensors:
        return torch.zeros_like(counts)
    is_wide = is_exact or torch.float64 in {t.dtype for t in tensors}
    # CUDA's kernel works in short rows by itself; float64 needs none.
    is_cut = not is_wide and counts.device.type == "cpu"
    long = {i: _long_norm(t) for i, t in enumerate(tensors) if is_cut and t.numel() > LONG}
    short = [t for i, t in enumerate(tensors) if i not in long]
    norms = list(torch._foreach_norm(short, 2, dtype=torch.float64 if is_wide else torch.float32)) if short else []
    for i, norm in long.items():
        norms.insert(i, norm)
    return torch.stack(norms).mul(counts).square_()


@torch.no_grad()
def inner_products(left: Sequence[Tensor], right: Sequence[Tensor], device: torch.device) -> Tensor:
    """(P,) float64 inner products <left_k, right_k>, accumulated in float64."""
    products = [
        (a * b if a.dtype == torch.float64 else a.double() * b.double()).sum() for a, b in zip(left, right, strict=True)
    ]
    return torch.stack(products) if products else torch.zeros(0, dtype=torch.float64, device=device)


def _long_norm(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    whole = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1, dtype=torch.float32)
    tail = torch.linalg.vector_norm(flat[whole:], dtype=torch.float32)
    return torch.linalg.vector_norm(torch.cat([rows, tail.view(1)]), dtype=torch.float64)
