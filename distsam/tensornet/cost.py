"""What a plan costs: its work, counted from the spec, times what a unit of each kind of work takes."""

import json
import os
from collections.abc import Mapping
from functools import lru_cache
from math import inf, prod
from pathlib import Path
from typing import NamedTuple

from distsam.errors import InputError
from distsam.tensornet.contraction import ContractionPlan, Indices, Pair


class Work(NamedTuple):
    """Work of one forward and backward pass.

    Args:
        calls: torch calls of merges, gathers and joins.
        sliced_calls: those within slices.
        multiply_adds: multiplications of matrix products, forward and backward, with the sides of small matrices
            filled up to LANES.
        batched_multiply_adds: those of batched matrix products.
        small_multiply_adds: those of batched products of matrices so small that torch multiplies them number by number.
        batched_matrices: results of batched products of larger ones.
        matrix_elements: elements that are read and written by matrix products.
        batched_elements: by batched matrix products.
        moved_elements: by products number by number.
        copied_elements: elements of tensors that are first brought into another order.
        column_elements: numbers gathered one by one, from tables laid out (bonds, rows).
        row_elements: numbers gathered as whole rows.
        fused_elements: numbers gathered, multiplied and added up in one pass by `kernels`.
        fused_rows: rows of which they are.
        fused_far_elements: those of fused_elements that are of tables of FAR_ELEMENTS and more.
        far_elements: those of moved_elements that are in tensors of FAR_ELEMENTS and more.
        large_elements: those in tensors of LARGE_ELEMENTS and more.
    """

    calls: float = 0
    sliced_calls: float = 0
    multiply_adds: float = 0
    batched_multiply_adds: float = 0
    small_multiply_adds: float = 0
    batched_matrices: float = 0
    matrix_elements: float = 0
    batched_elements: float = 0
    moved_elements: float = 0
    copied_elements: float = 0
    column_elements: float = 0
    row_elements: float = 0
    fused_elements: float = 0
    fused_rows: float = 0
    fused_far_elements: float = 0
    far_elements: float = 0
    large_elements: float = 0

    def plus(self, *others: "Work") -> "Work":
        """The sum."""
        return Work(*map(sum, zip(self, *others, strict=True)))

    def times(self, number: float) -> "Work":
        """So many of it."""
        return Work(*(number * units for units in self))

    def in_slices(self, number: float) -> "Work":
        """So many times the work of a slice. All but the first find their memory as the slice before left it: nothing
        is fresh, and batched products find in the cache what was just gathered."""
        first = self._replace(calls=0, sliced_calls=self.calls)
        again = first._replace(batched_elements=0, far_elements=0, large_elements=0)
        return first.plus(again.times(number - 1))


# From 8 MiB (float32) on glibc takes most tensors as fresh pages from the system, and gives them back at once.
LARGE_ELEMENTS = 2**21
# More than the cache of a core holds.
FAR_ELEMENTS = 2**19
# Numbers that are multiplied at once: narrow matrices leave some of them idle.
LANES = 16
# torch multiplies batches of matrices of fewer multiplications each in loops of its own, as LinearAlgebra.cpp of ATen
# says.
SMALL_PRODUCT = 400

# Nanoseconds per unit of each kind: `distsam calibrate`, float32, OMP_NUM_THREADS=1, torch 2.13, 2026-11-28,
# AMD EPYC (AVX-512, 1 MiB L2 a core): the coefficients that best explain the logarithm of the times of the good ways
# to evaluate 30 networks (up to twice the fastest), within a factor of 1.30 (one sigma).
NANOSECONDS = Work(
    calls=31_000,
    sliced_calls=2_900,
    multiply_adds=0.02,
    batched_multiply_adds=0.1,
    small_multiply_adds=1.2,
    batched_matrices=25,
    matrix_elements=0.29,
    batched_elements=0.24,
    moved_elements=0.54,
    copied_elements=0.16,
    column_elements=3.5,
    row_elements=0.34,
    fused_elements=0.26,
    fused_rows=5.7,
    fused_far_elements=1.2,
    far_elements=0.096,
    large_elements=0.47,
)
# What a multiplication takes in the contractions of a usual network, all that they move included.
NS_PER_MULTIPLY_ADD = 0.10


# Names a file of times that were measured on this machine, as `distsam calibrate` writes it.
COSTS_FILE = "DISTSAM_COSTS"


def cost_ns(work: Work) -> float:
    """What this work takes, in nanoseconds of one CPU thread, or of what was measured here."""
    return sum(units * ns for units, ns in zip(work, costs_in_use(os.environ.get(COSTS_FILE)), strict=True))


@lru_cache(maxsize=8)
def costs_in_use(path: str | None) -> Work:
    """Nanoseconds a unit: those of the file, or those that are shipped.

    Raises:
        InputError: the file cannot be read, or lacks a number above 0 for a kind of work.
    """
    if not path:
        return NANOSECONDS
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "not a text in UTF-8"
        raise InputError(f"{COSTS_FILE}: {path} cannot be read ({problem}); unset it, or calibrate") from None
    try:
        found = json.loads(text)["nanoseconds"]
        costs = Work(*(float(found[name]) for name in Work._fields))
    except json.JSONDecodeError as error:
        problem = f"is not JSON (line {error.lineno}: {error.msg})"
        raise InputError(f"{COSTS_FILE}: {path} {problem}; write it by distsam calibrate") from None
    except (ValueError, TypeError, KeyError):
        names = ", ".join(Work._fields)
        raise InputError(
            f"{COSTS_FILE}: {path} lacks a number for one of {names}; write it by distsam calibrate"
        ) from None
    if not all(0 < ns < inf for ns in costs):
        raise InputError(f"{COSTS_FILE}: {path} has a time that is not above 0; write it by distsam calibrate")
    return costs


def elements_of(indices: Indices, sizes: Mapping[str, int]) -> int:
    """Of a tensor with these indices."""
    return prod(sizes[index] for index in indices)


def pair_work(pair: Pair, sizes: Mapping[str, int]) -> Work:
    """Work of one contraction of two tensors; forward and backward together take three of them."""
    elements = [elements_of(indices, sizes) for indices in (pair.a, pair.b, pair.result)]
    multiply_adds = elements_of(tuple({*pair.a, *pair.b}), sizes) if pair.summed else 0
    matrices = elements_of(pair.batch, sizes)
    is_small = multiply_adds < SMALL_PRODUCT * matrices
    if not pair.batch and pair.summed:
        multiply_adds = _filled(pair, sizes)
    kind = "multiply_adds" if not pair.batch else "small_multiply_adds" if is_small else "batched_multiply_adds"
    is_product = not pair.summed or not (pair.free_a or pair.free_b)
    moved = "moved_elements" if is_product else "batched_elements" if pair.batch else "matrix_elements"
    return Work(
        calls=1,
        batched_matrices=matrices if kind == "batched_multiply_adds" else 0,
        copied_elements=_copied(pair, sizes) if pair.summed else 0,
        far_elements=sum(n for n in elements if n >= FAR_ELEMENTS),
        large_elements=sum(n for n in elements if n >= LARGE_ELEMENTS),
    )._replace(**{kind: multiply_adds, moved: sum(elements)})


def _copied(pair: Pair, sizes: Mapping[str, int]) -> int:
    """Elements of the operands whose batch, rows and columns do not lie behind each other, in either order."""
    copied = 0
    for own, free in ((pair.a, pair.free_a), (pair.b, pair.free_b)):
        order = tuple(index for index in own if sizes[index] > 1)
        orders = ((*pair.batch, *free, *pair.summed), (*pair.batch, *pair.summed, *free))
        if order not in [tuple(index for index in wanted if sizes[index] > 1) for wanted in orders]:
            copied += elements_of(own, sizes)
    return copied


def _filled(pair: Pair, sizes: Mapping[str, int]) -> int:
    """Multiplications that the processor makes room for: rows and columns in full lanes, and to begin with each sum."""
    rows, columns, summed = (elements_of(own, sizes) for own in (pair.free_a, pair.free_b, pair.summed))
    return -(-rows // LANES) * LANES * -(-columns // LANES) * LANES * (summed + LANES)


def contraction_work(plan: ContractionPlan, sizes: Mapping[str, int], rebuilds: bool = False) -> Work:
    """Work of forward and backward.

    Args:
        rebuilds: what lies between is not kept, but made again in backward.
    """
    work = [pair_work(pair, sizes) for pair in plan.pairs]
    again = work[:-1] if rebuilds else []
    return Work().plus(*(w.times(3) for w in work), *again)
