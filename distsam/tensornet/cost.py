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
        row_elements: numbers gathered as whole rows.
        join_multiply_adds: multiplications of the batched matrix products that join rows.
        large_elements: elements of tensors of LARGE_ELEMENTS and more.
    """

    calls: float
    merge_multiply_adds: float
    table_elements: float
    column_elements: float
    row_elements: float
    join_multiply_adds: float
    large_elements: float


# From 32 MiB (float32) on glibc takes every tensor as fresh pages from the system and gives them back at once.
LARGE_ELEMENTS = 2**23

# Nanoseconds per unit of each kind: tests/benchmarks/plan_costs.py, float32, OMP_NUM_THREADS=1, torch 2.13, AMD EPYC
# (AVX-512, 1 MiB L2 a core): the coefficients that best explain the logarithm of 483 measured times (15 networks, 6
# batch sizes, every cut), within a factor of 1.4 (one sigma). The cut that they choose took on average 1.02-1.04
# times as long as the cut that was measured fastest, at worst 2 times, all of that below 10 ms. A second run on the
# busy machine gave the same numbers within 1.4, large_elements within 1.7. Gathering a whole row costs nothing
# beyond its numbers.
NANOSECONDS = Work(
    calls=60_000,
    merge_multiply_adds=0.10,
    table_elements=1.9,
    column_elements=6.1,
    row_elements=6.5,
    join_multiply_adds=0.94,
    large_elements=3.8,
)


def cost_ns(work: Work) -> float:
    """What this work takes, in nanoseconds of one CPU thread."""
    return sum(units * ns for units, ns in zip(work, NANOSECONDS, strict=True))
