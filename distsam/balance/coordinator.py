"""The coordinator: makes of what a step has measured the numbers that people watch."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from distsam.balance.dynamics import (
    covariance,
    deviation_rate,
    max_over_min,
    norm_deviation,
    relative_deviation,
)
from distsam.balance.meter import FirstPass, MakePieces, Meter, SecondPass
from distsam.sharding.collectives import rank
from distsam.tensornet import CoreNetwork, core_networks

Snapshot = dict[str, float | int | None]
# What a step does to a network, beside where it is.
RATES = ("covariance", "predicted_rate", "predicted_rate_exact", "measured_rate")


@dataclass(frozen=True)
class StepRecord:
    """One finished step, as device tensors. N cores of all networks.

    Attributes:
        step: how many steps were done with this one.
        first, second: its passes; second is None for one-pass methods.
        radius: (N,) float64 the factor of each core's gradient in its perturbation (SAM: rho / norm); None where there
            was no second pass, or epsilon is not along the gradient.
        growth: (N,) float64 relative change of each core by a rescale, divided by the learning rate; or None.
        rates: (N,) float64 learning rate of each core's parameter group; None for a skipped or unpublished step.
        num_skipped: skipped steps so far.
        clip_factor: () float64 by which clipping scaled the gradient that the base got; None where nothing clips.
        is_combined: the base stepped along something else than the last pass's gradient: no law is known for it.
        counters: what the optimizers themselves count, by published name, on the device where it is counted there;
            empty for an unpublished step.
    """

    step: int
    first: FirstPass
    second: SecondPass | None
    radius: Tensor | None
    growth: Tensor | None
    rates: Tensor | None
    num_skipped: int
    clip_factor: Tensor | None
    is_combined: bool
    counters: Mapping[str, Tensor | int]


class Measured(Protocol):
    """What the coordinator needs of an optimizer of distsam."""

    def attach(self, coordinator: "BalanceCoordinator") -> None:
        """Report every pass and step to `coordinator`."""


class BalanceCoordinator:
    """Publishes the balance of every network of a model, at log cadence and without stalling the step.

    Args:
        model: its networks are found by `core_networks`; call after `shard`.
        optimizer: an optimizer of distsam that reports its steps here. Without one `snapshot` gives the norms, and
            None for all that belongs to a step.
        every: log cadence in steps: steps 1, every, 2 every, ... are published.
        last_step: the step that ends the run, if it is known: published too.

    The numbers of step t hold the core norms after it. Those are measured by the first pass of step t + 1, and then the
    numbers are published: one step late, without a collective of their own.
    """

    def __init__(
        self, model: nn.Module, optimizer: Measured | None = None, every: int = 1, last_step: int | None = None
    ) -> None:
        if every < 1:
            raise ValueError(f"every={every}: the log cadence is at least 1 step")
        self.networks: list[CoreNetwork] = core_networks(model)
        if not self.networks:
            warnings.warn(
                f"{type(model).__name__} holds no tensor network, so no core norm and no deviation is measured; build "
                "it of distsam.TensorNetwork",
                stacklevel=2,
            )
        self.every = every
        self.last_step = last_step
        self._params = list(model.parameters())
        self._meter = Meter(self._params, self.networks)
        self._last: StepRecord | None = None
        self._pending: list[tuple[int, Callable[[], Snapshot | None]]] = []
        if optimizer is not None:
            optimizer.attach(self)

    def use_pieces(self, make_pieces: MakePieces) -> None:
        """Reach the weights by `make_pieces`, as the optimizer does."""
        self._meter = Meter(self._params, self.networks, make_pieces)

    def is_due(self, step: int) -> bool:
        """True if the numbers of `step` are to be published."""
        return step in (1, self.last_step) or step % self.every == 0

    def wants_norms(self, step: int) -> bool:
        """True if the first pass of `step` must measure the core norms: for itself, or for the step before."""
        return self.is_due(step) or self.is_due(step - 1)

    def on_first_pass(self, first: FirstPass) -> None:
        """A new step has begun: its core norms are those that the last step left."""
        last = self._last
        if last is not None and self.is_due(last.step) and rank() == 0:
            # Without networks there are no norms to measure, but the other numbers of the step are published.
            after = first.core_norms_sq if self.networks else self._meter.core_norms_sq()
            if after is not None:
                self._pending.append((last.step, _copy_to_host(last, after, self.networks)))
        self._last = None

    def on_step(self, record: StepRecord) -> None:
        """A step has ended."""
        self._last = record

    def poll(self) -> list[tuple[int, Snapshot]]:
        """What has become available since the last call, oldest first: (step, numbers); waits for nothing.

        Empty on every rank but 0.
        """
        ready: list[tuple[int, Snapshot]] = []
        while self._pending:
            step, fetch = self._pending[0]
            snapshot = fetch()
            if snapshot is None:
                break
            ready.append((step, snapshot))
            self._pending.pop(0)
        return ready

    def flush(self) -> list[tuple[int, Snapshot]]:
        """All that is outstanding, the last step included; for the end of a run.

        Collectives: one all_reduce(sum) of N float64; every rank calls it.
        """
        if self._meter.device.type == "cuda":
            torch.cuda.synchronize(self._meter.device)
        ready = self.poll()
        if self._last is not None and self.is_due(self._last.step):
            ready.append((self._last.step, self.snapshot()))
            self._last = None
        return ready if rank() == 0 else []

    def snapshot(self) -> Snapshot:
        """The balance now, and the rates of the last step, the same on every rank.

        Returns:
            "balance/<network>/<metric>" with norm_deviation (parameter unit^4), covariance (of s and gamma),
            relative_deviation, max_over_min, predicted_rate, predicted_rate_exact, measured_rate (parameter
            unit^4 per learning rate x step), "balance/<network>/core_norm_sq/<core>" by the names of the spec,
            "sam/grad_norm", "sam/loss_gap", "sam/skipped", "train/loss", and after a step what the optimizers count,
            such as "das/clipped". None where a number does not exist: ratios with a zero core, the loss gap of a
            one-pass method, and rates before the first step, of a skipped one, of cores that do not all move at one
            learning rate, and predicted ones of an ascent for which the law is not known.

        Collectives: one all_reduce(sum) of N float64; every rank calls it.
        """
        after = self._meter.core_norms_sq().cpu()
        is_known = self._last is not None and self.is_due(self._last.step)
        host = _host_record(self._last) if self._last is not None and is_known else None
        return _assemble(host, after, self.networks)


def _copy_to_host(
    record: StepRecord, norms_after: Tensor, networks: list[CoreNetwork]
) -> Callable[[], Snapshot | None]:
    """Start copying; the returned function gives the numbers once they have arrived, None before."""
    host = _host_record(record, non_blocking=True)
    after = norms_after.to("cpu", non_blocking=True)
    event = None
    if norms_after.is_cuda:
        event = torch.cuda.Event()
        event.record()
    return lambda: None if event is not None and not event.query() else _assemble(host, after, networks)


def _host_record(record: StepRecord, non_blocking: bool = False) -> dict[str, Any]:
    first, second = record.first, record.second
    on_device = {
        "before": first.core_norms_sq,
        "gamma": first.gamma,
        "grad_norm_sq": first.grad_norm_sq,
        "loss": first.loss,
        "loss_perturbed": None if second is None else second.loss,
        "ascent": None if second is None else second.ascent,
        "radius": record.radius,
        "growth": record.growth,
        "rates": record.rates,
        "clip_factor": record.clip_factor,
    }

    def copy(value: Any) -> Any:
        return value.to("cpu", non_blocking=non_blocking) if isinstance(value, Tensor) else value

    copied = {name: copy(value) for name, value in on_device.items()}
    counters = {name: copy(value) for name, value in record.counters.items()}
    host_only = {
        "num_skipped": record.num_skipped,
        "is_combined": record.is_combined,
        "has_second": second is not None,
    }
    return {**copied, **host_only, "counters": counters}


@torch.inference_mode()
def _assemble(host: dict[str, Any] | None, after: Tensor, networks: list[CoreNetwork]) -> Snapshot:
    """All published numbers; those of a step are None where no published step is known."""
    numbers: Snapshot = dict.fromkeys(("train/loss", "sam/grad_norm", "sam/loss_gap", "sam/skipped"))
    if host is not None:
        loss, perturbed = host["loss"], host["loss_perturbed"]
        numbers = {
            "train/loss": _number(loss),
            "sam/grad_norm": _number(host["grad_norm_sq"].sqrt()),
            "sam/loss_gap": None if loss is None or perturbed is None else _number(perturbed - loss),
            "sam/skipped": host["num_skipped"],
        }
        numbers.update({name: int(count) for name, count in host["counters"].items()})
    for network, cores in _by_network(networks):
        deviation = norm_deviation(after[cores])
        numbers.update(_balance(network, after[cores], deviation))
        rates = (None,) * len(RATES) if host is None else _rates(host, deviation, cores)
        for metric, value in zip(RATES, rates, strict=True):
            numbers[f"balance/{network.name}/{metric}"] = _number(value)
    return numbers


def _balance(network: CoreNetwork, s: Tensor, deviation: Tensor) -> Snapshot:
    prefix, names = f"balance/{network.name}", network.core_names
    is_whole = bool((s > 0).all())
    return {
        f"{prefix}/norm_deviation": _number(deviation),
        f"{prefix}/relative_deviation": _number(relative_deviation(s)) if is_whole else None,
        f"{prefix}/max_over_min": _number(max_over_min(s)) if is_whole else None,
        **{f"{prefix}/core_norm_sq/{name}": _number(value) for name, value in zip(names, s.tolist(), strict=True)},
    }


def _rates(host: dict[str, Any], deviation: Tensor, cores: slice) -> tuple[Tensor | None, ...]:
    """The numbers of RATES, of one step of one network, after which it has this `deviation`."""
    s, gamma = host["before"][cores], host["gamma"][cores]
    drives = _drives(host, s, gamma, cores)
    rates = set() if host["rates"] is None else set(host["rates"][cores].tolist())
    if len(rates) != 1:
        # The laws are those of cores that all move, at one rate.
        return covariance(s, gamma), None, None, None
    rate = rates.pop()
    # At rate 0, infinite or NaN: not published.
    measured = (deviation - norm_deviation(s)) / rate
    predicted = [None if drive is None else deviation_rate(s, drive) for drive in drives]
    return covariance(s, gamma), *predicted, measured


def _drives(host: dict[str, Any], s: Tensor, gamma: Tensor, cores: slice) -> tuple[Tensor | None, Tensor | None]:
    """What drives the cores apart, of first order in rho and exactly; None where no law says."""
    rescale = torch.zeros_like(s) if host["growth"] is None else host["growth"][cores] * s
    if host["is_combined"]:
        return None, None
    if not host["has_second"]:
        return rescale, rescale
    clip = 1.0 if host["clip_factor"] is None else host["clip_factor"]
    first_order = None if host["radius"] is None else rescale + clip * host["radius"][cores] * gamma
    return first_order, rescale + clip * host["ascent"][cores]


def _by_network(networks: list[CoreNetwork]) -> list[tuple[CoreNetwork, slice]]:
    spans, start = [], 0
    for network in networks:
        spans.append((network, slice(start, start + len(network.cores))))
        start += len(network.cores)
    return spans


def _number(value: Tensor | float | None) -> float | None:
    if value is None:
        return None
    number = float(value)
    return number if number == number and abs(number) != float("inf") else None
