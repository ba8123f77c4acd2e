"""Where the cores start: entries of a given size, core norms equal or in given ratios, drawn whole or in pieces."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from math import exp, inf, log, prod

import numpy as np
import torch
from torch import Tensor

from distsam.errors import ArgumentError
from distsam.tensornet.arguments import checked_list, checked_positive
from distsam.tensornet.contraction import ContractionPlan, contract, plan_contraction
from distsam.tensornet.normals import blocks, normals_at, places_of, seed_of
from distsam.tensornet.spec import NetworkSpec

# Cores of so many numbers together are contracted exactly, where that takes no more than so many multiplications
# (about a second) and no intermediate result of more than so many numbers (128 MiB).
EXACT_ELEMENTS = 2**22
EXACT_MULTIPLY_ADDS = 2**34
EXACT_INTERMEDIATE = 2**24


@dataclass(frozen=True)
class NetworkStart:
    """Gaussian cores of given norms whose tensor has the wanted root mean square; any piece can be drawn alone.

    Every process that holds a piece of a core calls `fill_` for it, the sums that it returns are added up core by core,
    and every piece is multiplied by the factor of its core: no process needs a whole network for that, and the numbers
    do not depend on how the cores are cut.

        norms_sq[k] = start.fill_(k, piece, offsets)    # summed over the pieces of core k
        piece.mul_(start.factors(norms_sq)[k])

    Args:
        spec: the network; K cores.
        key: which of the random starts, from 0 to 2^63 - 1.
        std: root mean square of the entries, sqrt(||T||^2 / number of entries): no mean is taken off.
        norms: K positive numbers, the wanted ratios of the core norms ||G_k||; their common scale is ignored. All equal
            (norm deviation Q = 0) when None.

    Raises:
        ArgumentError: the key is out of its range, std or a norm is not positive and finite, or there are not K norms.
    """

    spec: NetworkSpec
    key: int
    std: float = 1.0
    norms: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.key, int) or not 0 <= self.key < 2**63:
            raise ArgumentError("key", f"is {self.key!r}; it must be an integer from 0 to 2^63 - 1")
        object.__setattr__(self, "std", checked_positive(self.std, "std"))
        if self.norms is not None:
            object.__setattr__(self, "norms", tuple(_checked_norms(self.spec, self.norms)))

    @torch.no_grad()
    def fill_(self, k: int, piece: Tensor, offsets: Sequence[int]) -> Tensor:
        """Fills a piece of core k with its standard normal numbers, in place.

        A number depends on the key and on its place in the network alone; no two places of a network share their
        random bits. Beyond the piece about 2 MiB are used.

        Args:
            k: number of the core.
            piece: a block of the core, floating, on any device, and maybe empty; the float64 numbers are rounded to its
                dtype.
            offsets: per dim, where in the whole core the piece begins.

        Returns:
            The sum of squares of the float64 numbers, 0-dim, float64, on the CPU. Sums over pieces are exact, in every
            order: each square is rounded to a multiple of a power of two so large that no later rounding is needed.
            Of a core of N numbers, N above a hundred, it is off by about 2^-51 sqrt(N) of itself.

        Raises:
            ArgumentError: the piece reaches beyond the core.
        """
        shape = self._shape(k)
        _check_piece(piece, offsets, shape)
        strides = [prod(shape[dim + 1 :]) for dim in range(len(shape))]
        first = self._firsts[k] + sum(o * s for o, s in zip(offsets, strides, strict=True))
        # No sum of squares comes near 4 N + 128: the squares have mean 1 and are below 68.
        quanta = 2.0 ** (53 - (4 * prod(shape) + 128).bit_length())
        total = 0.0
        for block in blocks(piece.shape):
            numbers = normals_at(self._seed, places_of(block, strides, first))
            piece[block] = numbers.to(piece.dtype)
            total += float(np.rint(numbers.square_().mul_(quanta).numpy()).sum())
        return torch.tensor(total / quanta, dtype=torch.float64, device="cpu")

    def factors(self, norms_sq: Sequence[float] | Sequence[Tensor] | Tensor) -> list[float]:
        """What every core is multiplied by after `fill_`, so that norms and root mean square are the wanted ones.

        A network of at most EXACT_ELEMENTS numbers is drawn here in float64 and contracted with itself, so that the
        root mean square is exactly `std`. Of a larger one, or one whose contraction takes too long, this is done with
        its smallest cores, and over the others the mean is taken, which over all cores is

            E||T||^2 = prod_k s_k / prod_i d_i^(m_i - 1),    s_k = ||G_k||^2, d_i the size of index i, on m_i cores.

        For it is in small cores that one start differs from another: the mean over all would miss `std` by a factor of
        up to 2.6 in trains that begin with small bonds. With the smallest contracted, over 3 to 6 starts each of CP,
        Tucker, TT and TR of 4 to 6 million numbers in 3 to 5 cores, the root mean square was within 0.06 % of `std`; in
        trains of 26 and 40 modes of size 2 within 1.5 %, of 250 within 7 %. What every averaged core leaves over adds
        up along thousands of cores: trains of 2,000, of 8 and 40 million numbers, missed by a factor of up to 1.6.

        Args:
            norms_sq: K sums of squares of the whole cores, in the order of the spec, as `fill_` gives them.

        Returns:
            K factors, the same bits on processes that compute alike.

        Raises:
            ArgumentError: no such factors exist in float64.
        """
        known = [float(norm_sq) for norm_sq in norms_sq]
        cores: list[Tensor | float] = [norm_sq**0.5 for norm_sq in known]
        for k in self._contracted:
            core = torch.empty(self._shape(k), dtype=torch.float64, device="cpu")
            known[k] = float(self.fill_(k, core, [0] * core.dim()))
            cores[k] = core
        ratios = self.norms or [1.0] * self.spec.num_cores
        # In logarithms: the product of many norms can leave float64.
        scales = [log(ratio) - 0.5 * log(norm_sq) for ratio, norm_sq in zip(ratios, known, strict=True)]
        log_wanted = log(self.std) + 0.5 * sum(log(size) for size in self.spec.shape)
        common = (log_wanted - log_tensor_norm(self.spec, cores) - sum(scales)) / self.spec.num_cores
        return [self._factor(scale + common) for scale in scales]

    @property
    def is_exact(self) -> bool:
        """True if the root mean square will be exactly `std`, and the factors follow from the start alone."""
        return len(self._contracted) == self.spec.num_cores

    def draw_(self, cores: Sequence[Tensor]) -> None:
        """The start of the whole network in one process: fills all K cores, which may be of any dtype and device."""
        norms_sq = [self.fill_(k, core, [0] * core.dim()) for k, core in enumerate(cores)]
        with torch.no_grad():
            for core, factor in zip(cores, self.factors(norms_sq), strict=True):
                core.mul_(factor)

    def _shape(self, k: int) -> tuple[int, ...]:
        # Of one core: with thousands of them, `spec.core_shapes` for each would take seconds.
        return tuple(self.spec.size(index) for index in self.spec.cores[k])

    @cached_property
    def _seed(self) -> int:
        return seed_of(self.key)

    @cached_property
    def _firsts(self) -> list[int]:
        """Per core the place of its first number: the cores of a network lie one behind the other."""
        return list(accumulate(map(prod, self.spec.core_shapes), initial=0))

    @cached_property
    def _contracted(self) -> tuple[int, ...]:
        """The cores that `factors` draws and contracts, chosen from the spec alone: the smallest."""
        sizes = [prod(shape) for shape in self.spec.core_shapes]
        order = sorted(range(len(sizes)), key=lambda k: sizes[k])
        ends = accumulate(sizes[k] for k in order)
        chosen = [k for k, end in zip(order, ends, strict=True) if end <= EXACT_ELEMENTS]
        while chosen and _is_costly(_norm_plan(self.spec, sorted(chosen))):
            chosen.pop()
        return tuple(sorted(chosen))

    def _factor(self, log_factor: float) -> float:
        factor = exp(log_factor) if -700 < log_factor < 700 else 0.0
        if not factor:
            problem = (
                f"{self.std} cannot be met: the norm of the tensor of these {self.spec.num_cores} cores leaves float64"
            )
            raise ArgumentError("std", problem)
        return factor


def draw_cores(
    spec: NetworkSpec,
    *,
    std: float = 1.0,
    norms: Sequence[float] | None = None,
    generator: torch.Generator | None = None,
) -> list[Tensor]:
    """The start of a network in float64, whole: see NetworkStart, which also says what can be refused.

    Args:
        spec, std, norms: as of NetworkStart.
        generator: where the key comes from; torch's own CPU generator when None.

    Returns:
        K float64 tensors on the generator's device (CPU when None).
    """
    start = NetworkStart(spec, drawn_key(generator), std, norms)
    device = "cpu" if generator is None else generator.device
    cores = [torch.empty(shape, dtype=torch.float64, device=device) for shape in spec.core_shapes]
    start.draw_(cores)
    return cores


def drawn_key(generator: torch.Generator | None) -> int:
    """The key of a NetworkStart: one number of the generator, or of torch's own CPU generator when None."""
    device = "cpu" if generator is None else generator.device
    return int(torch.randint(2**63 - 1, (), generator=generator, device=device))


def log_tensor_norm(spec: NetworkSpec, cores: Sequence[Tensor | float]) -> float:
    """log ||T||, by contracting the network with itself: T is never built.

    The logarithm, because the product of many core norms can leave float64.

    Args:
        spec: the network.
        cores: K tensors. A number in place of one is the norm of a core of independent Gaussian numbers; then it is the
            root of the mean of ||T||^2 over those cores.

    Returns:
        -inf if T is zero or leaves float64.
    """
    known = [k for k, core in enumerate(cores) if isinstance(core, Tensor)]
    tensors = [core.double() for core in cores if isinstance(core, Tensor)]
    norms = [float(torch.linalg.vector_norm(core)) if isinstance(core, Tensor) else core for core in cores]
    if min(norms) == 0:
        return -inf
    log_norms = sum(log(norm) for norm in norms)
    log_mean, log_known = (_log_mean_norm(spec, range(spec.num_cores)), _log_mean_norm(spec, known))
    if not known:
        return log_norms + log_mean
    # Each scaled so that the contraction gives about 1: of norm 1 alone, a thousand of them would leave float64.
    units = [core / (norms[k] * exp(log_known / len(known))) for k, core in zip(known, tensors, strict=True)]
    norm_sq = float(contract(_norm_plan(spec, known), [unit for unit in units for _ in range(2)]))
    return log_norms + log_mean + (0.5 * log(norm_sq) if 0 < norm_sq < inf else -inf)


def _norm_plan(spec: NetworkSpec, known: Sequence[int]) -> ContractionPlan:
    """The contraction of these cores with themselves, averaged over the others.

    A mean E[G_a G_a'] is zero unless all indices agree: so the two copies share each index of an averaged core, as they
    share the modes, and each has every other bond for itself.
    """
    shared = {*spec.modes}.union(*(core for k, core in enumerate(spec.cores) if k not in known))
    copies = [tuple(i if i in shared else i + "'" for i in spec.cores[k]) for k in known]
    # Each core beside its copy: along the chain no more than a bond of each is open.
    operands = tuple(core for k, copy in zip(known, copies, strict=True) for core in (spec.cores[k], copy))
    sizes = {i: spec.size(i.removesuffix("'")) for operand in operands for i in operand}
    return plan_contraction(operands, (), tuple(sizes.items()))


def _log_mean_norm(spec: NetworkSpec, known: Sequence[int]) -> float:
    """log of the root of the mean of that contraction, were these cores Gaussian of norm 1."""
    carried = {i for k in known for i in spec.cores[k]}
    log_elements = sum(log(spec.size(i)) for k in known for i in spec.cores[k])
    return 0.5 * (sum(log(spec.size(i)) for i in sorted(carried)) - log_elements)


def _is_costly(plan: ContractionPlan) -> bool:
    return plan.multiply_adds > EXACT_MULTIPLY_ADDS or max(plan.intermediates) > EXACT_INTERMEDIATE


def _check_piece(piece: Tensor, offsets: Sequence[int], shape: Sequence[int]) -> None:
    is_block = len(offsets) == piece.dim() == len(shape)
    if not is_block or any(o < 0 or o + n > s for o, n, s in zip(offsets, piece.shape, shape, strict=True)):
        given = f"has shape {tuple(piece.shape)} and begins at {tuple(offsets)}"
        raise ArgumentError("piece", f"{given}; it must lie within the core of shape {tuple(shape)}")


def _checked_norms(spec: NetworkSpec, norms: Sequence[float]) -> list[float]:
    given = checked_list(norms, "norms")
    if len(given) != spec.num_cores:
        names = ", ".join(spec.core_names)
        raise ArgumentError(
            "norms", f"{given} has {len(given)} numbers; the network has {spec.num_cores} cores ({names})"
        )
    return [checked_positive(norm, f"norms[{k}]") for k, norm in enumerate(given)]
