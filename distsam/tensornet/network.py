"""The network with numbers: an nn.Module that gives entries of its tensor, or the whole of it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distsam.errors import ArgumentError
from distsam.tensornet.arguments import checked_size
from distsam.tensornet.contractor import Contractor, WholeCores
from distsam.tensornet.initial import NetworkStart, drawn_key
from distsam.tensornet.products import MultiplyPlans, RowsPlans
from distsam.tensornet.spec import NetworkSpec

_IS_DEFERRING: ContextVar[bool] = ContextVar("is_deferring", default=False)


@contextmanager
def deferred_draws() -> Iterator[None]:
    """Inside, a new TensorNetwork takes no memory: its cores are on the meta device, and its start is noted.

    All else of a model is made as always, and generators move on as always, because a start takes one key from them
    whether it is drawn or noted. The numbers come later: all with `TensorNetwork.draw_deferred`, or each process those
    of its pieces with `TensorNetwork.start`; they are the same bits as without this. A network whose cores are given
    (`load_cores`, `from_dense`, an adapter), or are of `tensorize`, gets them at once. It is so in this thread alone.
    """
    token = _IS_DEFERRING.set(True)
    try:
        yield
    finally:
        _IS_DEFERRING.reset(token)


class TensorNetwork(nn.Module):
    """A tensor T kept as cores: `at` and `dense` are differentiable in every core.

    The cores are the parameters "cores.0", "cores.1", ..., in the order of `spec.cores`; they are looked up at call
    time, because placing the module may replace them. Calling the module is `at`. Under autocast the products of
    cores are of the lower precision; entries are summed in that of the cores.

    Args:
        spec: what the cores are.
        std: root mean square of the entries of T at the start (their standard deviation about zero); met exactly by
            networks of up to 4 million parameters that contract fast, nearly by others (`NetworkStart.factors`).
        norms: K Frobenius norms ||G_k|| of the cores, of which only the ratios count, because their product is
            fixed by `std`; all equal (norm deviation Q = 0) when None.
        generator: where the key of the random numbers comes from; torch's own CPU generator when None. It gives one
            number, whatever the size; dtype and device change the cores by rounding only.
        dtype: of the parameters, floating; torch's default when None.
        device: of the parameters.
        max_peak_bytes: ceiling of what one evaluation makes in one process, forward and backward: its result,
            gradients and all that lies between. It then runs in slices, which can take longer; where even that does not
            help, it is refused. None: no ceiling.

    Attributes:
        start: the random start that was drawn or noted last; None where the cores were given, or are still to be drawn.

    Raises:
        ArgumentError: std or a norm is not positive and finite, there are not K norms, or dtype is not floating.
    """

    # Read by `core_networks`, and where the module is placed.
    entry_points = ("at", "dense", "multiply", "rows")

    def __init__(
        self,
        spec: NetworkSpec,
        *,
        std: float = 1.0,
        norms: Sequence[float] | None = None,
        generator: torch.Generator | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        max_peak_bytes: int | None = None,
    ) -> None:
        super().__init__()
        dtype = dtype or torch.get_default_dtype()
        if not isinstance(spec, NetworkSpec):
            raise ArgumentError("spec", f"is {spec!r}; it must be a NetworkSpec, such as distsam.cp((4, 5, 6), 2)")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise ArgumentError("dtype", f"{dtype} is not floating; use float32, float64, bfloat16 or float16")
        self.spec = spec
        if max_peak_bytes is not None:
            checked_size(max_peak_bytes, "max_peak_bytes")
        self._contractor: Contractor = WholeCores(spec, max_peak_bytes)
        self.start: NetworkStart | None = None
        wanted = torch.get_default_device() if device is None else torch.device(device)
        # Where the cores go when their numbers come; None once they are there, and where nobody draws them.
        self._later: torch.device | None = wanted if _IS_DEFERRING.get() and wanted.type != "meta" else None
        place = wanted if self._later is None else "meta"
        self.cores = nn.ParameterList(nn.Parameter(torch.empty(s, dtype=dtype, device=place)) for s in spec.core_shapes)
        if self.is_deferred or not any(core.is_meta for core in self.cores):
            self.draw(std=std, norms=norms, generator=generator)

    @property
    def is_deferred(self) -> bool:
        """True while the cores are on the meta device because of `deferred_draws`."""
        return self._later is not None and any(core.is_meta for core in self.cores)

    @property
    def drawn_on(self) -> torch.device:
        """The device where the cores of a deferred network are to be; else that where they are."""
        return self.cores[0].device if self._later is None else self._later

    def draw(
        self, *, std: float = 1.0, norms: Sequence[float] | None = None, generator: torch.Generator | None = None
    ) -> None:
        """Draws all cores again; for one built on the meta device, after `to_empty`. Arguments as of the class.

        Of a deferred network the start is noted, and its cores stay where they are.
        """
        self.start = NetworkStart(self.spec, drawn_key(generator), std, norms)
        if not self.is_deferred:
            self._draw(self.start)

    def draw_deferred(self, device: torch.device | str | None = None) -> None:
        """Puts the cores of a deferred network on a device and draws them; of any other network it does nothing.

        The parameters are new ones, as after `to_empty`.

        Args:
            device: where the cores go; where they would be without `deferred_draws` when None.

        Raises:
            ArgumentError: `std` cannot be met in this dtype.
        """
        if self.is_deferred and self.start is not None:
            self._make_room(device)
            self._draw(self.start)

    def _make_room(self, device: torch.device | str | None = None) -> None:
        self.to_empty(device=self._later if device is None else device)
        self._later = None

    @torch.no_grad()
    def _draw(self, start: NetworkStart) -> None:
        start.draw_(list(self.cores))
        for name, parameter in zip(self.spec.core_names, self.cores, strict=True):
            if not torch.isfinite(parameter).all() or not parameter.any():
                problem = f"{start.std} gives a core {name} that {parameter.dtype} cannot hold; choose one nearer to 1"
                raise ArgumentError("std", problem)

    def forward(self, indices: Tensor) -> Tensor:
        """The same as `at`."""
        return self.at(indices)

    def at(self, indices: Tensor) -> Tensor:
        """The entries of T at these positions.

        Which cores are merged before their rows are gathered follows from the spec and from B
        (`planner.plan_entries`); it changes the result by rounding only.

        Args:
            indices: (B, order) int64, each column within its mode; negative positions are refused. B may be 0.

        Returns:
            values_B: (B,), dtype and device of the cores.

        Raises:
            ArgumentError: `indices` is not a (B, order) int64 tensor.
            IndexError: a position is outside its mode (on an accelerator torch's own assertion).
        """
        if not isinstance(indices, Tensor):
            raise ArgumentError(
                "indices", f"is a {type(indices).__name__}; it must be a tensor (B, {self.spec.order}), torch.int64"
            )
        if indices.dtype != torch.int64 or indices.dim() != 2 or indices.shape[1] != self.spec.order:
            given = f"has shape {tuple(indices.shape)}, {indices.dtype}"
            raise ArgumentError("indices", f"{given}; it must be (B, {self.spec.order}), torch.int64")
        return self._contractor.entries(self.cores, indices)

    def dense(self) -> Tensor:
        """The full tensor T, of shape `spec.shape`."""
        return self._contractor.dense(self.cores)

    def multiply(self, vectors: Tensor, plans: MultiplyPlans) -> Tensor:
        """T as a linear map, without building it where that is cheaper: see `products.multiply`."""
        return self._contractor.multiply(self.cores, vectors, plans)

    def rows(self, positions: Tensor, plans: RowsPlans) -> Tensor:
        """Slices of T, one for each of a batch of positions: see `products.rows`."""
        return self._contractor.rows(self.cores, positions, plans)

    def contract_with(self, contractor: Contractor) -> None:
        """Leave all computing with the cores to `contractor`: for cores of which a process holds pieces only."""
        self._contractor = contractor

    @torch.no_grad()
    def load_cores(self, cores: Sequence[Tensor]) -> None:
        """Copies `cores` into the parameters; a deferred network gets memory for them.

        Raises:
            ArgumentError: the number or a shape of the cores differs from the spec.
        """
        shapes = tuple(tuple(core.shape) for core in cores)
        if shapes != self.spec.core_shapes:
            raise ArgumentError("cores", f"have shapes {shapes}; this network has {self.spec.core_shapes}")
        if self.is_deferred:
            self._make_room()
        for parameter, core in zip(self.cores, cores, strict=True):
            parameter.copy_(core)
        self.start = None

    @classmethod
    def from_dense(
        cls,
        tensor: Tensor | np.ndarray,
        spec: NetworkSpec,
        *,
        seed: int = 0,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> "TensorNetwork":
        """A network that starts at tensorly's decomposition of `tensor`, all core norms equal (`decompose`).

        Args:
            tensor: of shape `spec.shape`; NaN marks a missing entry, and so does the mask of a numpy masked array.
            spec: of format cp, tucker, tt or tr.
            seed: for what the decomposition draws at random.
            dtype: of the parameters; torch's default when None.
            device: of the parameters.

        Raises:
            ArgumentError: see `decompose`.
        """
        from distsam.tensornet.decompose import decompose  # tensorly loads slowly, and only starts need it

        return cls.holding(spec, decompose(tensor, spec, seed=seed), dtype or torch.get_default_dtype(), device)

    @classmethod
    def from_tensorly(cls, decomposition: Any) -> "TensorNetwork":
        """The network of a tensorly CPTensor, TuckerTensor, TTTensor or TRTensor, in its dtype (`decompose`)."""
        from distsam.tensornet.decompose import from_tensorly

        spec, cores = from_tensorly(decomposition)
        return cls.holding(spec, cores, cores[0].dtype, cores[0].device)

    def to_tensorly(self) -> Any:
        """A copy as tensorly's CPTensor, TuckerTensor, TTTensor or TRTensor.

        Its arrays are those of tensorly's active backend: numpy unless the user has set another.

        Raises:
            ArgumentError: tensorly has no object for an einsum network.
        """
        from distsam.tensornet.decompose import to_tensorly

        return to_tensorly(self.spec, list(self.cores))

    @classmethod
    def holding(
        cls,
        spec: NetworkSpec,
        cores: Sequence[Tensor],
        dtype: torch.dtype,
        device: torch.device | str | None = None,
    ) -> "TensorNetwork":
        """A network of these cores. No number is drawn for it, and torch's generator does not move on.

        Args:
            spec: what the cores are.
            cores: K tensors, which are copied.
            dtype: of the parameters.
            device: of the parameters; torch's default when None.

        Raises:
            ArgumentError: as `load_cores`.
        """
        with deferred_draws():
            network = cls(spec, generator=torch.Generator(), dtype=dtype, device=device)
        network.load_cores(cores)
        return network

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return f"{self.spec.format}, shape={self.spec.shape}, num_parameters={self.spec.num_parameters}"
