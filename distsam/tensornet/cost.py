"""What a plan costs: its work, counted from the spec, times what a unit of each kind of work takes."""

from typing import NamedTuple


class Work(NamedTuple):
    """Work of one forward and backward pass.

    Args:
        calls: torch calls of merges, gathers and joins.
        merge_multiply_adds: multiplications of the merges, forward.
        table_elements: elements of every merged table and of what is made on the way (each made once, and its
            gradient once; the gradient of a core alone in its group is filled with zeros too).
        column_elements: numbers gathered one by one, from tables laid out (bonds, rows).
        rows: rows gathered as a whole.
        row_elements: numbers in those rows.
        join_multiply_adds: multiplications of the batched matrix products that join rows.
        large_elements: elements of tensors of LARGE_ELEMENTS and more.
    """

    calls: float
    merge_multiply_adds: float
    table_elements: float
    column_elements: float
    rows: float
    row_elements: float
    join_multiply_adds: float
    large_elements: float


# From 32 MiB (float32) on glibc takes every tensor as fresh pages from the system and gives them back at once.
LARGE_ELEMENTS = 2**23

# Nanoseconds per unit of each kind.
NANOSECONDS = Work(
    calls=20_000,
    merge_multiply_adds=0.1,
    table_elements=3.0,
    column_elements=4.0,
    rows=30.0,
    row_elements=8.0,
    join_multiply_adds=1.0,
    large_elements=4.0,
)


def cost_ns(work: Work) -> float:
    """What this work takes, in nanoseconds of one CPU thread."""
    return sum(units * ns for units, ns in zip(work, NANOSECONDS, strict=True))
