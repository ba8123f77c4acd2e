"""A size as a product of small factors: how a matrix becomes a tensor of many modes."""

from functools import lru_cache
from math import log, prod

from distsam.errors import ArgumentError
from distsam.tensornet.arguments import checked_size

# A mode of about this size keeps both the cores and the number of modes small: 4096 = 8^4.
USUAL_MODE = 8


def num_factors(size: int, *, mode: int = USUAL_MODE) -> int:
    """Into how many factors of about `mode` a size is cut; at least 2, so that there is something to compress."""
    return max(2, round(log(max(size, 2)) / log(mode)))


def factorise(size: int, num: int, argument: str = "size") -> tuple[int, ...]:
    """`num` integers whose product is exactly `size`, as equal as its prime factors allow; the larger ones first.

    A prime gives itself and ones: exact, but nothing is compressed along it. `padded_size` says what a padded layer
    would take instead.

    Args:
        size: at least 1.
        num: how many factors, at least 1.
        argument: what the caller calls the size.

    Raises:
        ArgumentError: one of them is no integer of at least 1.
    """
    size, num = checked_size(size, argument), checked_size(num, "num_factors")
    return tuple(sorted(_most_equal(size, num), reverse=True))


def padded_size(size: int, num: int) -> int:
    """The smallest size from `size` on that `num` factors cut well: the largest of them at most 1.5 times the root.

    At most 1.3 times as large as `size` where that is above 64.
    """
    padded = checked_size(size, "size")
    while max(factorise(padded, num)) > max(1.5 * padded ** (1 / num), 2):
        padded += 1
    return padded


def checked_factors(factors: tuple[int, ...], size: int, argument: str, *, is_padded: bool) -> tuple[int, ...]:
    """Factors that a user gave, if they are of this size.

    Raises:
        ArgumentError: one is no integer of at least 1; or their product is not `size`, nor, where padding was asked
            for, above it.
    """
    checked = tuple(checked_size(factor, f"{argument}[{k}]") for k, factor in enumerate(factors))
    product = prod(checked)
    if not checked or product < size or (product > size and not is_padded):
        rule = f"at least {size}" if is_padded else f"{size}; for a larger one set pad=True, which fills it up unused"
        raise ArgumentError(argument, f"{list(checked)} has the product {product}; it must be {rule}")
    return checked


@lru_cache(maxsize=1024)
def _most_equal(size: int, num: int) -> tuple[int, ...]:
    """The factors with the smallest sum, which of a given product is smallest where they are equal."""
    if num == 1:
        return (size,)
    root = size ** (1 / num)
    divisors = [d for d in range(1, int(size**0.5) + 1) if size % d == 0]
    divisors += [size // d for d in divisors]
    # The factor nearest to the root can be missed by a greedy choice: all divisors near it are tried.
    nearest = sorted(set(divisors), key=lambda d: abs(log(d / root)))[:6]
    found = [(divisor, *_most_equal(size // divisor, num - 1)) for divisor in nearest]
    return min(found, key=lambda factors: (sum(factors), sorted(factors)))
