"""Rows of tables gathered, multiplied and added up in one pass: loops that numba compiles, where the user asks for it.

torch has no operation that does all three: it writes what it gathers, and its gradient, to memory. The same sums in
another order differ by rounding, so that nothing here runs because numba happens to be installed:
`export DISTSAM_KERNELS=numba` asks for it, and `distsam train` refuses ranks that differ in it.
"""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distsam.errors import InputError

# Names who multiplies rows: torch (as where it is not set) or numba.
KERNELS = "DISTSAM_KERNELS"
_TYPES: dict[torch.dtype, np.dtype[Any]] = {
    torch.float32: np.dtype(np.float32),
    torch.float64: np.dtype(np.float64),
    torch.int64: np.dtype(np.int64),
}
# As many as `_gradient` has loops for.
MAX_TABLES = 4
# Numbers gathered below which a second thread costs more than it saves: a millisecond's work.
WORTH_A_THREAD = 2**20


def serve(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether tables of this dtype on this device are joined here."""
    return asked_for(os.environ.get(KERNELS)) and device.type == "cpu" and dtype in (torch.float32, torch.float64)


@lru_cache(maxsize=8)
def asked_for(value: str | None) -> bool:
    """Whether this value of DISTSAM_KERNELS asks for numba.

    Raises:
        InputError: it is neither torch nor numba, or numba is not installed.
    """
    if value in (None, "", "torch"):
        return False
    if value != "numba":
        raise InputError(f"{KERNELS} is {value!r}; either torch (or not set), or numba")
    try:
        _loops()
    except ImportError:
        raise InputError(f"{KERNELS} is numba, which is not installed: pip install 'distsam[kernels]'") from None
    return True


@lru_cache(maxsize=1)
def _loops() -> tuple[Callable[..., None], Callable[..., None]]:
    """Both loops, compiled for each number of tables and dtype when they are first called."""
    import numba

    # Sums in lanes, as a processor adds fastest; NaN and infinity as they are.
    options: Any = {"nogil": True, "fastmath": {"reassoc", "contract"}, "error_model": "numpy"}
    return numba.njit(**options)(_values), numba.njit(**options)(_gradient)


def _values(tables: Any, rows: Any, values: Any, first: int, last: int) -> None:
    """values[b] = sum over c of the product of table[row[b], c], for b from first up to last."""
    for b in range(first, last):
        total = values.dtype.type(0)
        for c in range(tables[0].shape[1]):
            # The number of tables is known when this is compiled, and the loop over them gone.
            number = tables[0][rows[0][b], c]
            for k in range(1, len(tables)):
                number = number * tables[k][rows[k][b], c]
            total += number
        values[b] = total


def _gradient(grad: Any, row: Any, grad_B: Any, tables: Any, rows: Any, first: int, last: int) -> None:
    """grad[row[b], c] += grad_B[b] times the product of the other tables' table[row[b], c], for rows from first up to
    last. Each row adds up in the order of b, however many threads share the rows."""
    num = len(tables)
    for b in range(len(grad_B)):
        if not first <= row[b] < last:
            continue
        own, weight = grad[row[b]], grad_B[b]
        # Rows are named outside of the loop over c: only so it is compiled to vector instructions.
        if num == 1:
            one = tables[0][rows[0][b]]
            for c in range(len(own)):
                own[c] += weight * one[c]
        elif num == 2:
            one, two = tables[0][rows[0][b]], tables[1][rows[1][b]]
            for c in range(len(own)):
                own[c] += weight * one[c] * two[c]
        else:
            one, two, three = tables[0][rows[0][b]], tables[1][rows[1][b]], tables[2][rows[2][b]]
            for c in range(len(own)):
                own[c] += weight * one[c] * two[c] * three[c]


def _shared(run: Callable[[int, int], None], length: int, work: int) -> None:
    """Calls run(first, last) for parts of 0 up to `length`, by as many threads as torch uses."""
    num = min(torch.get_num_threads(), 1 + work // WORTH_A_THREAD)
    if num == 1:
        run(0, length)
        return
    # Made and ended here: threads that wait for the next call would be missing after a fork.
    with ThreadPoolExecutor(num) as pool:
        list(pool.map(lambda n: run(length * n // num, length * (n + 1) // num), range(num)))


def product_sum(tables: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    """values_B = sum over c of the product over tables of table[row_B, c].

    Args:
        tables: 2 to MAX_TABLES, each (rows, C), float32 or float64, in memory in that order, on the CPU.
        rows: one per table, (B,) int64, within its table.

    Returns:
        (B,), differentiable in the tables, again and again.
    """
    result: Tensor = _OnePass.apply(*tables, *rows)
    return result


class _OnePass(torch.autograd.Function):
    @staticmethod
    def forward(*tables_and_rows: Tensor) -> Tensor:
        result: Tensor = _values_of(*halves(tables_and_rows))
        return result

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        tables, rows = halves(ctx.saved_tensors)
        # Enabled where the gradient is to be differentiated in turn.
        by_torch = torch.is_grad_enabled() or _is_batched_by_autograd(grad_B)
        find = _gradients_by_torch if by_torch else _gradients_of
        return *find(grad_B, tables, rows), *[None] * len(rows)


def _is_batched_by_autograd(tensor: Tensor) -> bool:
    """Whether it is several, by the old vmap of `is_grads_batched`, which knows torch's own operations alone."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_legacy_batchedtensor(tensor)


def halves(tables_and_rows: Sequence[Any]) -> tuple[list[Any], list[Any]]:
    """Tables and rows, as autograd takes them: in one sequence."""
    half = len(tables_and_rows) // 2
    return list(tables_and_rows[:half]), list(tables_and_rows[half:])


# Operators of torch's own kind, so that compilers and torch.func know what to do with them.
@torch.library.custom_op("distsam::product_sum", mutates_args=())
def _values_of(tables: Sequence[Tensor], rows: Sequence[Tensor]) -> Tensor:
    tables_RC, rows_B = _arrays(tables), _arrays(rows)
    values = tables[0].new_empty(rows[0].shape)
    array = _array(values)
    _shared(lambda *part: _loops()[0](tables_RC, rows_B, array, *part), len(array), _work(tables, rows))
    return values


@torch.library.custom_op("distsam::product_sum_gradients", mutates_args=())
def _gradients_of(grad_B: Tensor, tables: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
    grads = [torch.zeros_like(table) for table in tables]
    tables_RC, rows_B, weights = _arrays(tables), _arrays(rows), _arrays([grad_B])[0]
    for k, grad in enumerate(grads):
        own, others, other_rows = _array(grad), _without(tables_RC, k), _without(rows_B, k)
        arguments = own, rows_B[k], weights, others, other_rows
        _shared(lambda *part, a=arguments: _loops()[1](*a, *part), len(own), _work(tables, rows))
    return grads


_values_of.register_fake(lambda tables, rows: tables[0].new_empty(rows[0].shape))
_gradients_of.register_fake(lambda grad_B, tables, rows: [torch.empty_like(table) for table in tables])


@_gradients_of.register_vmap
def _of_each(info: Any, in_dims: Any, grad_B: Tensor, tables: Sequence[Tensor], rows: Sequence[Tensor]) -> Any:
    """Of several gradients of the values, as torch.func.vmap asks for: one after the other."""
    found = [_gradients_of(grad, tables, rows) for grad in grad_B.movedim(in_dims[0], 0)]
    return [torch.stack(grads) for grads in zip(*found, strict=True)], [0] * len(tables)


def _arrays(tensors: Sequence[Tensor]) -> tuple[Any, ...]:
    return tuple(_array(tensor.detach().contiguous()) for tensor in tensors)


def _array(tensor: Tensor) -> Any:
    """The numbers of a contiguous tensor as an array of numpy, which keeps it alive. Not by `Tensor.numpy`: after that
    torch may never resize the memory, as FSDP2 does with whole parameters."""
    return np.asarray(_Memory(tensor)) if tensor.numel() else np.empty(tensor.shape, _TYPES[tensor.dtype])


class _Memory:
    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor
        self.__array_interface__ = {
            "version": 3,
            "shape": tuple(tensor.shape),
            "typestr": _TYPES[tensor.dtype].str,
            "data": (tensor.data_ptr(), False),
        }


def _without(items: Any, k: int) -> Any:
    return items[:k] + items[k + 1 :]


def _work(tables: Sequence[Tensor], rows: Sequence[Tensor]) -> int:
    return len(rows[0]) * len(tables) * tables[0].shape[1]


def _gradients_by_torch(grad_B: Tensor, tables: Sequence[Tensor], rows: Sequence[Tensor]) -> list[Tensor]:
    """The same as `_gradients_of`, differentiable."""
    taken = [table.index_select(0, row) for table, row in zip(tables, rows, strict=True)]
    grads = []
    for k, (table, row) in enumerate(zip(tables, rows, strict=True)):
        others = reduce(torch.mul, _without(taken, k), grad_B.unsqueeze(1).expand_as(taken[k]))
        grads.append(torch.zeros_like(table).index_add(0, row, others))
    return grads
