"""This rank's pieces of the parameters: what an optimizer works on, and which of them count in a sum over ranks."""

from collections.abc import Iterable, Sequence
from itertools import compress
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate

from distsam.sharding.collectives import all_reduce_sum_, rank, world_size
from distsam.sharding.gathered import discard_pass
from distsam.sharding.layout import loss_weight_of
from distsam.sharding.local import local_tensor
from distsam.sharding.replicate import averagers_of


@torch.no_grad()
def are_finite(tensors: Iterable[Tensor]) -> bool:
    """True if no element of these tensors is infinite or no number, on any rank.

    Collectives: one all_reduce of a number; every rank calls it.
    """
    pieces = [local_tensor(t) for t in tensors]
    device = pieces[0].device if pieces else torch.device("cpu")
    num_bad = torch.zeros((), dtype=torch.float64, device=device)
    for piece in pieces:
        num_bad += (~torch.isfinite(piece)).any()
    return all_reduce_sum_(num_bad).item() == 0


class Pieces(Protocol):
    """This rank's share of the parameters, as an optimizer reads and changes it, however they are placed.

    An engine that keeps weights or gradients in a place of its own gives the optimizer its Pieces by
    `optimizer.use_pieces(factory)`; without that an optimizer builds `LocalPieces`.

    Attributes:
        params: P parameters, the same list in the same order on every rank.
        owned: for each, does this rank's piece count? Summed over the world each element counts once.
        loss_weight: this rank's factor for its loss: the sum over the world is the mean over the data ranks.
        device: where all pieces are.
        is_alike: True if every rank holds the same weights and gradients, whole, so that each measures them for itself.
    """

    params: tuple[nn.Parameter, ...]
    owned: list[bool]
    loss_weight: float
    device: torch.device
    is_alike: bool

    def weights(self) -> list[Tensor]:
        """P pieces of the weights, sharing storage, for use under no_grad."""

    def stepped_weights(self) -> list[Tensor]:
        """P pieces of what the base optimizer's step moves: `weights`, unless an engine keeps a copy for that. A change
        to them reaches the passes with that step."""

    def gradients(self) -> list[Tensor | None]:
        """P pieces of the gradients of the pass that has just ended, averaged over the data ranks, sharing storage.

        None where there is none, or where the optimizer does not move the parameter. Every rank calls it, once a pass.
        """

    def clear(self) -> None:
        """Forget the gradients of all parameters that are moved."""

    def gradients_and_sums(self, loss: Tensor, wants_stop: bool) -> tuple[list[Tensor | None], Tensor] | None:
        """`gradients`, and the mean loss and the number of ranks that want to stop, (2,), where those came with them.

        None where they cannot: then nothing has been done yet. Where they can, every rank holds the same gradients.
        """

    def discard(self) -> None:
        """Forget a pass that raised on every rank, half-done gradients included."""

    def publish(self) -> None:
        """The weights were changed in place outside a step of the base optimizer: update whatever copies there are."""


class LocalPieces:
    """Pieces of plain parameters and DTensors, looked up at each call: their storage may be exchanged.

    Args:
        params: P parameters, sharded in any way, the same list on every rank.
        is_moved: which of them the optimizer moves; all when None. Of the others only the weights are looked at.

    Raises:
        ValueError: no parameter, a complex one, one that is Partial or lives on a mesh without rank 0, or parameters
            on several devices.
    """

    def __init__(self, params: Sequence[nn.Parameter], is_moved: Sequence[bool] | None = None) -> None:
        self.params = tuple(params)
        if not self.params:
            raise ValueError("nothing to measure: no parameter and no network was given")
        if any(p.is_complex() for p in params):
            raise ValueError("a parameter is complex: the laws of the norms are those of real cores; use a real dtype")
        self.is_alike = False
        self.owned = [owns(p) for p in params]
        self.loss_weight = loss_weight_of(params)
        self.device = _one_device(params)
        self._moved = self.params if is_moved is None else tuple(compress(params, is_moved))
        self._unmoved = [] if is_moved is None else [i for i, moves in enumerate(is_moved) if not moves]
        # Which are DTensors and how they are placed never changes: asked once, because asking takes time in every step.
        self._sharded = [(i, p, p.placements) for i, p in enumerate(params) if isinstance(p, DTensor)]
        self._averagers = averagers_of(params)

    def weights(self) -> list[Tensor]:
        """P pieces, sharing storage, for use under no_grad."""
        pieces: list[Tensor] = list(self.params)
        for i, param, _ in self._sharded:
            pieces[i] = param._local_tensor
        return pieces

    def stepped_weights(self) -> list[Tensor]:
        """The weights themselves."""
        return self.weights()

    def gradients(self) -> list[Tensor | None]:
        """P pieces of `.grad`, each placed as its parameter is; None where there is no gradient, or it is not moved.

        Collectives: for plain parameters none, but where some rank's backward reached none of them: that rank then does
            here what the others did in their backward. For DTensors none where the gradient is placed as its parameter
            (FSDP2); one redistribution for any other, which is stored back.
        """
        for averager in self._averagers:
            averager.complete()
        return self._pieces_of_gradients()

    def _pieces_of_gradients(self) -> list[Tensor | None]:
        pieces = [p.grad for p in self.params]
        for i, param, placements in self._sharded:
            grad = pieces[i]
            if isinstance(grad, DTensor):
                if grad.placements != placements:
                    grad = param.grad = grad.redistribute(placements=placements)
                pieces[i] = grad._local_tensor
        for i in self._unmoved:
            pieces[i] = None
        return pieces

    def clear(self) -> None:
        """Set `.grad` to None."""
        for param in self._moved:
            param.grad = None

    def gradients_and_sums(self, loss: Tensor, wants_stop: bool) -> tuple[list[Tensor | None], Tensor] | None:
        """None: averages are there after backward, before anybody asks what else is to be sent."""
        return None

    def discard(self) -> None:
        """Free what FSDP2 gathered for the pass (see `discard_pass`) and forget what was averaged in it."""
        discard_pass(self.params)
        for averager in self._averagers:
            averager.forget()

    def publish(self) -> None:
        """Nothing: torch computes with the very weights that were changed."""


class PausedPieces(LocalPieces):
    """Pieces of parameters that are whole on every rank, whose gradients are averaged not in backward but when they are
    asked for: one message then carries what a step must know beside them.

    For an engine that pauses the averager in its backwards; see `pausable`.
    """

    def __init__(self, params: Sequence[nn.Parameter], is_moved: Sequence[bool] | None = None) -> None:
        super().__init__(params, is_moved)
        # Every rank has the same weights and gradients: each measures for itself, and its sums are the world's.
        self.is_alike = True
        self._loss_share = self.loss_weight
        self.owned, self.loss_weight = [True] * len(self.params), 1.0

    def gradients_and_sums(self, loss: Tensor, wants_stop: bool) -> tuple[list[Tensor | None], Tensor]:
        """Average now. Collectives: one all_reduce of all gradients and a few numbers; every rank calls it."""
        [averager] = self._averagers
        stop = loss.new_full((), float(wants_stop))
        sums = averager.complete_with(torch.stack([loss * self._loss_share, stop]))
        return self._pieces_of_gradients(), sums


def pausable(params: Sequence[nn.Parameter]) -> bool:
    """True if PausedPieces serve these parameters: `shard` left all of them whole, with gradients of a few bytes."""
    averagers = averagers_of(params)
    return len(averagers) == 1 and averagers[0].is_small and averagers[0].num_params == len(params)


def _one_device(params: Sequence[nn.Parameter]) -> torch.device:
    devices = {local_tensor(p).device for p in params}
    if len(devices) > 1:
        names = " and ".join(sorted(map(str, devices)))
        raise ValueError(f"parameters on {names}: one rank's parameters must be on one device")
    return devices.pop()


def owns(param: nn.Parameter) -> bool:
    """True if this rank's piece counts: summed over the world each element counts once.

    Plain tensors are taken to be replicated on every rank. A mesh smaller than the world is taken to be one of
    several replicas: the one that holds rank 0 counts.
    """
    if not isinstance(param, DTensor):
        return rank() == 0
    mesh = param.device_mesh
    coordinate = mesh.get_coordinate()
    if any(isinstance(placement, Partial) for placement in param.placements):
        raise ValueError("a parameter has a Partial placement: reduce it before it is measured")
    if coordinate is None:
        if rank() == 0:
            raise ValueError("a parameter lives on a mesh without rank 0: every parameter must have a copy there")
        return False
    for placement, position in zip(param.placements, coordinate, strict=True):
        if isinstance(placement, Replicate) and position != 0:
            return False
    return mesh.size() == world_size() or 0 in mesh.mesh.flatten().tolist()
