"""The measurement of a pass: one small vector, one all-reduce, read by everything that needs a norm.

Legend: s_k = ||G_k||^2 of core k, g_k its gradient, gamma_k = ||g_k||^2, epsilon_k its perturbation, g~_k the gradient
at the perturbed weights; N cores of all networks together, P parameters, the cores first.

The vector of a pass is `squares (P), core norms (N or none), loss, stops, probes (any)`: each rank fills it
with what its own pieces give, and the all-reduce adds. Kept in as few tensor calls as can be: on small
networks those calls, and not their arithmetic, are what a step costs beside its passes.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distsam.balance.norms import inner_products, norm_parts, norms
from distsam.sharding import LocalPieces, Pieces
from distsam.sharding.collectives import all_reduce_sum_, is_distributed
from distsam.tensornet import CoreNetwork

Gradients = Sequence[Tensor | None]
Numbers = Tensor | list[float]
Norms = Tensor | tuple[Tensor, ...]
Probe = Callable[[list[Tensor | None]], Tensor | None]
MakePieces = Callable[[Sequence[nn.Parameter], Sequence[bool]], Pieces]


class PassNumbers:
    """The vector of a pass, the same bits on every rank, read by name.

    Args:
        values: float64, in the order above: a tensor on the device, or on CPU a list, because there a number costs the
            host nothing and a tensor call is what costs.
    """

    def __init__(self, values: Numbers, num_params: int, num_of_cores: int, has_loss: bool) -> None:
        self.num_params = num_params
        self._given = values
        self._loss_at = num_params + num_of_cores
        self._has_loss = has_loss

    @cached_property
    def vector(self) -> Tensor:
        """Float64, in the order above, on the device."""
        return self._given if isinstance(self._given, Tensor) else torch.tensor(self._given, dtype=torch.float64)

    @property
    def is_on_cpu(self) -> bool:
        """True where the host reads a number without waiting."""
        return not isinstance(self._given, Tensor)

    @cached_property
    def on_host(self) -> tuple[float, float, float]:
        """Squared norm of all gradients, loss (0 if the caller did not say) and stops; of a pass on CPU."""
        values = self._given
        assert isinstance(values, list)
        return sum(values[: self.num_params]), values[self._loss_at], values[self._loss_at + 1]

    @property
    def on_device(self) -> Tensor:
        """(3,) float64 the same, of a pass on an accelerator."""
        return torch.cat([self.grad_norm_sq.view(1), self.vector[self._loss_at : self._loss_at + 2]])

    @property
    def squares(self) -> Tensor:
        """(P,) float64 the squared norm of each parameter's gradient, the cores first."""
        return self.vector[: self.num_params]

    @cached_property
    def grad_norm_sq(self) -> Tensor:
        """() float64: the sum of the squares of all gradients of the model."""
        if self.is_on_cpu:
            return torch.tensor(self.on_host[0], dtype=torch.float64)
        return self.squares.sum()

    @property
    def loss(self) -> Tensor | None:
        """() float64, mean over the data ranks; None if the caller did not say."""
        return self.vector[self._loss_at] if self._has_loss else None

    @property
    def probes(self) -> Tensor | None:
        """The sums that an ascent asked for, float64; None where it asked for none."""
        return self.vector[self._loss_at + 2 :] if len(self.vector) > self._loss_at + 2 else None

    @cached_property
    def of_cores(self) -> Tensor | None:
        """(N,) float64, what was measured of the cores beside their gradients; None where nobody wanted it."""
        return self.vector[self.num_params : self._loss_at] if self._loss_at > self.num_params else None


class FirstPass(PassNumbers):
    """What a pass at the current weights measured.

    Attributes:
        position: id of a core -> its place k in the vectors over cores.
    """

    def __init__(
        self,
        values: Numbers,
        num_params: int,
        num_of_cores: int,
        has_loss: bool,
        position: Mapping[int, int],
    ) -> None:
        super().__init__(values, num_params, num_of_cores, has_loss)
        self.position = position

    def of_all_cores(self) -> tuple[Numbers, Numbers]:
        """N gamma_k and N s_k, the latter if wanted: lists of a pass on CPU, tensors elsewhere."""
        return self._given[: len(self.position)], self._given[self.num_params : self._loss_at]

    @property
    def gamma(self) -> Tensor:
        """(N,) float64 gamma_k."""
        return self.vector[: len(self.position)]

    @property
    def gamma_rest(self) -> Tensor:
        """() float64, the same for all other parameters together."""
        return self.vector[len(self.position) : self.num_params].sum()

    @property
    def core_norms_sq(self) -> Tensor | None:
        """(N,) float64 s_k, or None where nobody wanted them."""
        return self.of_cores


class SecondPass(PassNumbers):
    """What a pass at the perturbed weights measured."""

    @property
    def ascent(self) -> Tensor | None:
        """(N,) float64 <epsilon_k, g~_k>, or None where nobody wanted it."""
        return self.of_cores


class Meter:
    """Measures passes over a fixed list of parameters, cores first, with one all-reduce each.

    Args:
        params: the parameters that an optimizer moves, sharded in any way, the same list on every rank.
        networks: the networks whose cores are measured one by one; no core may be in two of them. Of a core that is
            not in `params` the norm is measured and the gradient is not looked at.
        make_pieces: how this rank's pieces are reached, from the parameters in the meter's order and which of them are
            moved.

    Raises:
        ValueError: a core in two networks, nothing to measure, a complex parameter, or parameters on several devices.
    """

    def __init__(
        self, params: Sequence[nn.Parameter], networks: Sequence[CoreNetwork], make_pieces: MakePieces = LocalPieces
    ) -> None:
        self.networks = tuple(networks)
        self.cores = [core for network in networks for core in network.cores]
        if len({id(c) for c in self.cores}) < len(self.cores):
            raise ValueError("a core belongs to two networks (or twice to one): its norm would have two meanings")
        tracked, moved = {id(c) for c in self.cores}, {id(p) for p in params}
        self.params = [*self.cores, *(p for p in params if id(p) not in tracked)]
        self.num_cores = len(self.cores)
        self.position = {id(core): k for k, core in enumerate(self.cores)}
        self.pieces = make_pieces(self.params, [id(p) in moved for p in self.params])
        self.device = self.pieces.device
        self._owned = [float(owns) for owns in self.pieces.owned]
        self._owned_cores = torch.tensor(self._owned[: self.num_cores], dtype=torch.float64, device=self.device)
        self._weights: dict[tuple[int, int], list[float]] = {}
        self._weights_on_device: dict[tuple[int, int], Tensor] = {}
        self._nothing = torch.zeros((), device=self.device)
        # Nothing to add to, and on CPU nothing to wait for.
        is_alone = self.pieces.is_alike or not is_distributed()
        self._sum = _as_it_is if is_alone else all_reduce_sum_
        self._is_whole = is_alone and {*self._owned, self.pieces.loss_weight} == {1.0}
        self._flags = {flag: torch.full((), float(flag), device=self.device) for flag in (False, True)}

    def core_norms_sq(self) -> Tensor:
        """(N,) float64 squared norms of all cores, now.

        Collectives: one all_reduce(sum) of N float64; every rank calls it.
        """
        if not self.cores:
            return torch.zeros(0, dtype=torch.float64, device=self.device)
        with torch.no_grad():
            return self._sum(norms(self._core_weights(), is_exact=True).mul(self._owned_cores).square_())

    def first_pass(
        self,
        loss: Tensor | float | None,
        wants_norms: bool = True,
        wants_stop: bool = False,
        probe: Probe | None = None,
    ) -> tuple[FirstPass, list[Tensor | None]]:
        """Measure the gradients that the first backward of a step left, and give back their local pieces.

        Call it under no_grad, as `second_pass`: a context costs as much as a small tensor call, and a step needs one.

        Args:
            loss: this rank's loss, averaged over the data ranks; None if unknown, on every rank alike.
            wants_norms: measure s_k too; the same on every rank.
            wants_stop: this rank asks for the end of the run.
            probe: from the local pieces to sums over what this rank owns, 1-D, of the same length on every rank; they
                are added over the ranks and arrive in `FirstPass.probes`.

        Collectives: one all_reduce(sum) of P + 2 float64 (N more with the norms, and the probes), and those of
            `Pieces.gradients`; every rank calls it.
        """
        grads, scalars = self._finish_pass(loss, wants_stop)
        probes = None if probe is None else probe(grads)
        core_norms = self._core_norms() if wants_norms and self.cores else None
        num, num_of_cores = len(grads), _length(core_norms)
        values = self._sum_over_ranks(grads, scalars, probes, core_norms, num + num_of_cores)
        return FirstPass(values, num, num_of_cores, loss is not None, self.position), grads

    def second_pass(
        self,
        loss: Tensor | float | None,
        epsilon: tuple[Gradients, float | Tensor] | None = None,
        probe: Probe | None = None,
    ) -> tuple[SecondPass, list[Tensor | None]]:
        """Measure the gradients that the backward at the perturbed weights left, and give back their local pieces.

        Args:
            loss: this rank's loss there; None if unknown, on every rank alike.
            epsilon: local pieces of directions, and scales, (N,) or one for all, so that epsilon_k is scale times
                direction; None: do not measure <epsilon_k, g~_k>.
            probe: as in `first_pass`.

        Collectives: as in `first_pass`.
        """
        grads, scalars = self._finish_pass(loss, False)
        probes = None if probe is None else probe(grads)
        products = None if epsilon is None or not self.cores else self._products(*epsilon, grads)
        num = len(grads)
        values = self._sum_over_ranks(grads, scalars, probes, products, num)
        return SecondPass(values, num, _length(products), loss is not None), grads

    def _norms(self, grads: Gradients) -> Norms:
        try:
            return norm_parts([self._nothing if g is None else g for g in grads])
        except (RuntimeError, TypeError):
            if any(g is not None and g.layout != torch.strided for g in grads):
                problem = "a gradient is sparse: SAM moves every weight; build the embedding with sparse=False"
                raise ValueError(problem) from None
            raise

    def _core_norms(self) -> Norms:
        return norm_parts(self._core_weights(), is_exact=True)

    def _core_weights(self) -> list[Tensor]:
        return self.pieces.weights()[: self.num_cores]

    def _finish_pass(self, loss: Tensor | float | None, wants_stop: bool) -> tuple[list[Tensor | None], Norms]:
        """Local pieces of the gradients, and loss and stop flag: of this rank, or of all where they came with those."""
        own = self._loss(loss)
        together = self.pieces.gradients_and_sums(own, wants_stop)
        return (self.pieces.gradients(), (own, self._flags[wants_stop])) if together is None else together

    def _sum_over_ranks(
        self,
        grads: Gradients,
        scalars: Norms,
        probes: Tensor | None,
        of_cores: Norms | None,
        num_squared: int,
    ) -> Numbers:
        """The values of a pass, see PassNumbers. The first `num_squared`, which are norms, are squared in float64."""
        parts = [self._norms(grads), () if of_cores is None else of_cores, scalars]
        if probes is not None:
            parts.append(probes)
        key = (_length(of_cores), _length(probes))
        if self.device.type == "cpu":
            numbers = [number for part in parts for number in _numbers(part)]
            if self._is_whole:
                return [x * x for x in numbers[:num_squared]] + numbers[num_squared:]
            own = [number * weight for number, weight in zip(numbers, self._weights_of(key), strict=True)]
            own[:num_squared] = [x * x for x in own[:num_squared]]
            values: list[float] = self._sum(torch.tensor(own, dtype=torch.float64)).tolist()
            return values
        local = torch.cat([part if isinstance(part, Tensor) else torch.stack(part) for part in parts if len(part)])
        if key not in self._weights_on_device:
            weights = torch.tensor(self._weights_of(key), dtype=torch.float64, device=self.device)
            self._weights_on_device[key] = weights
        vector = local.mul(self._weights_on_device[key])
        vector[:num_squared].square_()
        return self._sum(vector)

    def _weights_of(self, key: tuple[int, int]) -> list[float]:
        """The factors of a rank's numbers before ranks are added up; of so many core norms and probes."""
        if key not in self._weights:
            num_of_cores, num_probes = key
            scalars = [self.pieces.loss_weight, 1.0]
            self._weights[key] = [*self._owned, *self._owned[:num_of_cores], *scalars, *[1.0] * num_probes]
        return self._weights[key]

    def _products(self, directions: Gradients, scales: float | Tensor, grads: Gradients) -> Tensor:
        pairs = [
            (self._nothing, self._nothing) if e is None or g is None else (e, g)
            for e, g in zip(directions[: self.num_cores], grads, strict=False)
        ]
        return inner_products([e for e, _ in pairs], [g for _, g in pairs], self.device) * scales

    def _loss(self, loss: Tensor | float | None) -> Tensor:
        """() this rank's loss, on the device."""
        if isinstance(loss, DTensor):
            loss = loss.full_tensor()
        if not isinstance(loss, Tensor):
            return self._flags[False] if not loss else torch.full((), loss, dtype=torch.float64, device=self.device)
        if loss.dim():
            if loss.numel() != 1:
                raise ValueError(f"a loss of shape {tuple(loss.shape)}: give one number, such as its mean or sum")
            loss = loss.reshape(())
        return loss if loss.device == self.device else loss.to(self.device)


def _length(vector: Tensor | tuple[Tensor, ...] | None) -> int:
    return 0 if vector is None else len(vector)


def _as_it_is(vector: Tensor) -> Tensor:
    return vector


def _numbers(part: Norms) -> list[float]:
    return part.tolist() if isinstance(part, Tensor) else [number.item() for number in part]
