"""The fused measurement of a pass: one small vector, one all-reduce, read by everything that needs a norm.

Legend: s_k = ||G_k||^2 of core k, g_k its gradient, gamma_k = ||g_k||^2, epsilon_k its perturbation, g~_k the gradient
at the perturbed weights, N cores of all networks together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from distsam.balance.norms import inner_products, squared_norms
from distsam.sharding import LocalPieces, averagers_of, local_tensor
from distsam.sharding.collectives import all_reduce_sum_, world_size
from distsam.tensornet import CoreNetwork


@dataclass(frozen=True)
class FirstPass:
    """What a pass at the current weights measured; the same bits on every rank, on the device.

    Attributes:
        gamma: (N,) float64 gamma_k.
        gamma_rest: () float64, the same for all other parameters together.
        core_norms_sq: (N,) float64 s_k, or None where nobody wanted them.
        loss: () float64, mean over the ranks; None if the caller did not say.
        stops: () float64, how many ranks want to stop.
        position: id of a core -> its place k in the vectors.
    """

    gamma: Tensor
    gamma_rest: Tensor
    core_norms_sq: Tensor | None
    loss: Tensor | None
    stops: Tensor
    position: Mapping[int, int]

    @property
    def grad_norm_sq(self) -> Tensor:
        """() float64: the sum of the squares of all gradients of the model."""
        return self.gamma.sum() + self.gamma_rest

    @property
    def is_finite(self) -> Tensor:
        """() bool: the loss and every gradient, on every rank. A sum with one NaN or infinity shows it."""
        total = self.grad_norm_sq if self.loss is None else self.grad_norm_sq + self.loss
        return torch.isfinite(total)


@dataclass(frozen=True)
class SecondPass:
    """What a pass at the perturbed weights measured; the same bits on every rank, on the device.

    Attributes:
        grad_norm_sq: () float64, the sum over all parameters of ||g~||^2.
        loss: () float64, mean over the ranks; None if the caller did not say.
        ascent: (N,) float64 <epsilon_k, g~_k>, or None where nobody wanted it.
    """

    grad_norm_sq: Tensor
    loss: Tensor | None
    ascent: Tensor | None

    @property
    def is_finite(self) -> Tensor:
        """() bool: the loss and every gradient, on every rank."""
        return torch.isfinite(self.grad_norm_sq if self.loss is None else self.grad_norm_sq + self.loss)


class Meter:
    """Measures passes over a fixed list of parameters, cores first, with one all-reduce each.

    Args:
        params: the parameters that an optimizer moves, sharded in any way, the same list on every rank.
        networks: the networks whose cores are measured one by one; no core may be in two of them. Of a core that is
            not in `params` only the norm is measured: its gradient is nobody's business here.

    Raises:
        ValueError: a core in two networks, nothing to measure, a complex parameter, or parameters on several devices.
    """

    def __init__(self, params: Sequence[nn.Parameter], networks: Sequence[CoreNetwork]) -> None:
        self.networks = tuple(networks)
        self.cores = [core for network in networks for core in network.cores]
        if len({id(c) for c in self.cores}) < len(self.cores):
            raise ValueError("a core belongs to two networks (or twice to one): its norm would have two meanings")
        tracked = {id(c) for c in self.cores}
        self.params = [*self.cores, *(p for p in params if id(p) not in tracked)]
        self.num_cores = len(self.cores)
        moved = {id(p) for p in params}
        self._unmoved = [k for k, core in enumerate(self.cores) if id(core) not in moved]
        self.position = {id(core): k for k, core in enumerate(self.cores)}
        if not self.params:
            raise ValueError("nothing to measure: no parameter and no network was given")
        if any(p.is_complex() for p in self.params):
            raise ValueError("a parameter is complex: the laws of the norms are those of real cores; use a real dtype")
        self.pieces = LocalPieces(self.params)
        self._averagers = averagers_of(self.params)
        devices = sorted({str(local_tensor(p).device) for p in self.params})
        if len(devices) > 1:
            raise ValueError(f"parameters on {' and '.join(devices)}: one rank's parameters must be on one device")
        self.device = torch.device(devices[0])
        self._counts = torch.tensor(self.pieces.owned, dtype=torch.float64, device=self.device)
        self._nothing = torch.zeros((), device=self.device)

    def gradients(self) -> list[Tensor | None]:
        """The local pieces of a pass's gradients, in the order of `params`; None where a core is only looked at.

        Collectives: none, but where some rank's backward reached none of the whole parameters: that rank then does
            here what the others did in their backward. Every rank calls it, once a pass.
        """
        for averager in self._averagers:
            averager.complete()
        grads = self.pieces.gradients()
        for k in self._unmoved:
            grads[k] = None
        if any(g is not None and g.layout != torch.strided for g in grads):
            raise ValueError("a gradient is sparse: SAM moves every weight; build the embedding with sparse=False")
        return grads

    def clear_gradients(self) -> None:
        """Empty `.grad` of every parameter that is moved."""
        for k, param in enumerate(self.params):
            if k not in self._unmoved:
                param.grad = None

    def core_norms_sq(self) -> Tensor:
        """(N,) float64 squared norms of all cores, now.

        Collectives: one all_reduce(sum) of N float64; every rank calls it.
        """
        return all_reduce_sum_(self._local_core_norms_sq())

    def first_pass(
        self, loss: Tensor | float | None, wants_norms: bool = True, wants_stop: bool = False
    ) -> tuple[FirstPass, list[Tensor | None]]:
        """Measure the gradients that the first backward of a step left, and give back their local pieces.

        Args:
            loss: this rank's loss, averaged over the ranks; None if unknown, on every rank alike.
            wants_norms: measure s_k too; the same on every rank.
            wants_stop: this rank asks for the end of the run.

        Collectives: one all_reduce(sum) of N + 3 float64 (2 N + 3 with the norms), and see `gradients`; every rank
            calls it.
        """
        grads = self.gradients()
        gamma = self._squared(grads)
        n = self.num_cores
        parts = [gamma[:n], gamma[n:].sum(0, keepdim=True), self._share(loss), self._scalar(float(wants_stop))]
        if wants_norms:
            parts.append(self._local_core_norms_sq())
        vector = all_reduce_sum_(torch.cat(parts))
        record = FirstPass(
            gamma=vector[:n],
            gamma_rest=vector[n],
            loss=None if loss is None else vector[n + 1],
            stops=vector[n + 2],
            core_norms_sq=vector[n + 3 :] if wants_norms else None,
            position=self.position,
        )
        return record, grads

    def second_pass(
        self, loss: Tensor | float | None, epsilon: Sequence[Tensor | None], factors: Tensor | None
    ) -> SecondPass:
        """Measure the gradients that the backward at the perturbed weights left.

        Args:
            loss: this rank's loss there; None if unknown, on every rank alike.
            epsilon: local pieces of the perturbation, up to `factors`, in the order of `params`.
            factors: (N,) float64 so that epsilon_k = factors_k * epsilon[k]; None: do not measure <epsilon_k, g~_k>.

        Collectives: one all_reduce(sum) of 2 float64 (N + 2 with the inner products), and see `gradients`; every rank
            calls it.
        """
        grads = self.gradients()
        parts = [self._squared(grads).sum(0, keepdim=True), self._share(loss)]
        if factors is not None:
            pairs = [
                (self._nothing, self._nothing) if e is None or g is None else (e, g)
                for e, g in zip(epsilon[: self.num_cores], grads, strict=False)
            ]
            products = inner_products([e for e, _ in pairs], [g for _, g in pairs], self.device)
            parts.append(products * self._counts[: self.num_cores] * factors)
        vector = all_reduce_sum_(torch.cat(parts))
        return SecondPass(
            grad_norm_sq=vector[0],
            loss=None if loss is None else vector[1],
            ascent=None if factors is None else vector[2:],
        )

    def _squared(self, grads: Sequence[Tensor | None]) -> Tensor:
        present = [self._nothing if g is None else g for g in grads]
        return squared_norms(present, self._counts)

    def _local_core_norms_sq(self) -> Tensor:
        cores = [local_tensor(c) for c in self.cores]
        return squared_norms(cores, self._counts[: self.num_cores], is_exact=True)

    def _share(self, loss: Tensor | float | None) -> Tensor:
        """(1,) float64: this rank's share of the mean loss."""
        if isinstance(loss, DTensor):
            loss = loss.full_tensor()
        if isinstance(loss, Tensor):
            if loss.numel() != 1:
                raise ValueError(f"a loss of shape {tuple(loss.shape)}: give one number, such as its mean or sum")
            return loss.detach().reshape(1).to(self._counts) / world_size()
        return self._scalar(0.0 if loss is None else loss / world_size())

    def _scalar(self, value: float) -> Tensor:
        """(1,) float64, without a copy from the host."""
        return torch.full((1,), value, dtype=torch.float64, device=self.device)
