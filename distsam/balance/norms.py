"""Squared norms and inner products of many tensors, accurate to float64 where it matters, at float32's cost."""

from collections.abc import Sequence

import torch
from torch import Tensor

# A float32 accumulator is right to 6e-8 over 4,096 elements and only to 2e-5 over a million (measured, CPU). Long
# tensors are therefore summed in rows of this length, and the rows in float64: 5e-8, at the same speed; float64
# throughout takes five times as long.
ROW = 4096
LONG = 4 * ROW
# So many elements are copied to float64 at a time.
LONGEST_COPY = 2**20
# On CPU a norm of a small tensor is all call and no work. Where so many tensors come, those of one shape are copied
# together and measured by one call: a sixth of the time for 128 cores of 64 x 8.
MANY = 16


def norms(tensors: list[Tensor], is_exact: bool = False) -> Tensor:
    """(P,) float32 or float64 Frobenius norms of P local tensors; see `norm_parts`."""
    parts = norm_parts(tensors, is_exact)
    return parts if isinstance(parts, Tensor) else torch.stack(parts)


def norm_parts(tensors: list[Tensor], is_exact: bool = False) -> Tensor | tuple[Tensor, ...]:
    """Frobenius norms of P local tensors, as (P,) or, where it costs a call less, as P of (); float32 or float64.

    Call it under no_grad.

    Relative error of the square below 2e-7 for float32 and half precision (of equal entries, whose rounding errors do
    not cancel, 2e-5); where `is_exact`, and in a list that has a float64 tensor, below 1e-12. Not exact, the squares
    have float32's range: elements above 1e19 give infinity (a step that is skipped), those below 1e-19 lose digits,
    then vanish.

    Args:
        tensors: at least one, of any shapes and dtypes, on one device.
        is_exact: sum in float64 whatever the dtypes.
    """
    dtype = torch.float64 if is_exact or torch.float64 in {t.dtype for t in tensors} else torch.float32
    # CUDA's kernel takes many tensors in one call, and works in short rows by itself.
    if tensors[0].device.type != "cpu":
        return torch._foreach_norm(tensors, 2, dtype=dtype)
    is_cut = dtype == torch.float32 and any(t.numel() > LONG for t in tensors)
    if len(tensors) < MANY and not is_cut:
        return torch._foreach_norm(tensors, 2, dtype=dtype)
    return _by_size(tensors, dtype, is_cut)


def inner_products(left: Sequence[Tensor], right: Sequence[Tensor], device: torch.device) -> Tensor:
    """(P,) float64 inner products <left_k, right_k>, accumulated in float64. Call it under no_grad."""
    products = [_inner_product(a, b) for a, b in zip(left, right, strict=True)]
    return torch.stack(products) if products else torch.zeros(0, dtype=torch.float64, device=device)


def _inner_product(a: Tensor, b: Tensor) -> Tensor:
    """In parts where it is long: float64 copies of a core and of its gradient would be as large as Adam's state."""
    if a.numel() <= LONGEST_COPY:
        return (a * b if a.dtype == torch.float64 else a.double() * b.double()).sum()
    parts = zip(a.reshape(-1).split(LONGEST_COPY), b.reshape(-1).split(LONGEST_COPY), strict=True)
    return torch.stack([_inner_product(*pair) for pair in parts]).sum()


def _by_size(tensors: list[Tensor], dtype: torch.dtype, is_cut: bool) -> Tensor:
    """The norms of short tensors of one shape together, of long ones in rows, of all others one by one."""
    alike: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
    for i, t in enumerate(tensors):
        alike.setdefault((t.shape, t.dtype), []).append(i)
    order: list[int] = []
    found: list[Tensor] = []
    single: list[int] = []
    for (shape, _), places in alike.items():
        size = shape.numel()
        if size > LONG and is_cut:
            found += [_long_norm(tensors[i]).view(1) for i in places]
        elif len(places) > 1 and 0 < size <= ROW:
            rows = torch.stack([tensors[i] for i in places]).view(len(places), -1)
            found.append(torch.linalg.vector_norm(rows, dim=1, dtype=dtype))
        else:
            single += places
            continue
        order += places
    if single:
        found.append(torch.stack(torch._foreach_norm([tensors[i] for i in single], 2, dtype=dtype)))
        order += single
    values = found[0] if len(found) == 1 else torch.cat(found)
    if order == list(range(len(order))):
        return values
    return torch.empty_like(values).index_copy_(0, torch.tensor(order), values)


def _long_norm(tensor: Tensor) -> Tensor:
    flat = tensor.reshape(-1)
    whole = flat.numel() // ROW * ROW
    rows = torch.linalg.vector_norm(flat[:whole].view(-1, ROW), dim=1, dtype=torch.float32)
    tail = torch.linalg.vector_norm(flat[whole:], dtype=torch.float32)
    return torch.linalg.vector_norm(torch.cat([rows, tail.view(1)]), dtype=torch.float64)
