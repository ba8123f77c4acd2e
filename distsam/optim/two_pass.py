"""The step of SAM and its kin: up by an ascent, a second pass there, back bit for bit, down with the base optimizer."""

import math
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from distsam.balance import FirstPass
from distsam.balance.meter import Gradients
from distsam.optim.ascent import Ascent, Sweep
from distsam.optim.guard import check_any
from distsam.optim.perturbation import Perturbation
from distsam.optim.replay import KeptBuffers, RandomReplay
from distsam.optim.wrapper import Closure, Wrapper, descend
from distsam.sharding import Pieces
from distsam.tensornet import CoreNetwork

_NO_SCALER = (
    "A torch.amp.GradScaler cannot step SAM, which measures its gradients unscaled: run the passes under "
    "torch.autocast(dtype=torch.bfloat16), which needs no scaler"
)


class TwoPass(Wrapper):
    """A step around an ascent: the base steps from w with what the ascent makes of the gradients at w and w + epsilon.

    The weights come back bit for bit, from a copy, also when the second pass raises. The gradient is the raw one,
    without the base's weight decay. With a closure the second pass sees the same random numbers as the first (dropout),
    on this rank's CPU and GPU; in a loop without one that is the caller's to do. Running state that a forward moves
    (BatchNorm's) is moved by the first pass only. A parameter group whose rho is 0 is not perturbed; its gradient still
    counts in the norms.

    Args:
        base_optimizer: any torch optimizer, or DAS or BAR: those use the first pass.
        ascent: where to go up, and what to go down along.
        model: for a compiled model: keep the running state of its modules, which no hook finds.
        max_skipped: so many steps in a row with a non-finite loss or gradient raise TrainingDiverged.

    If the loss or a gradient of either pass is not finite on any rank, all ranks skip the step together: weights and
    base state stay as they were.

    Collectives: a small all_reduce for each pass of a step (see Meter), beside those of the passes; every rank calls
    step.
    """

    def __init__(
        self, base_optimizer: Optimizer, ascent: Ascent, *, model: nn.Module | None = None, max_skipped: int = 10
    ) -> None:
        super().__init__(base_optimizer, max_skipped, ascent.name)
        self.ascent = ascent
        self.own_state = ascent.own_state
        # Most ascents need no sum of their own, and asking each time costs as much as a small tensor call.
        self._has_probes = type(ascent).probes is not Ascent.probes
        self._has_second_probes = type(ascent).second_probes is not Ascent.second_probes
        self._rho = self.add_key("rho", ascent.rho)
        self._random = RandomReplay()
        self._kept_buffers = KeptBuffers(model)
        self._perturbation = Perturbation()
        self._pending: tuple[Sweep, float | Tensor, Gradients] | None = None
        self._is_combined = False
        # What a step without a closure left in place.
        self._left: tuple[Tensor, int] | None = None

    @property
    def networks(self) -> tuple[CoreNetwork, ...]:
        """The networks that the ascent asks about."""
        return self.ascent.networks

    @property
    def copies(self) -> tuple[Tensor, ...]:
        """The weights before the last perturbation."""
        return self._perturbation.copies

    def own_counters(self) -> Mapping[str, Tensor | int]:
        """What the ascent counts."""
        return self.ascent.own_counters()

    def load_own_counters(self, counters: Mapping[str, int]) -> None:
        """Restore what the ascent counted."""
        self.ascent.load_own_counters(counters)

    def apply(self, first: FirstPass, pieces: Pieces) -> None:
        """Move the weights by the gradients in place, as the ascent combined them."""
        descend(self.base, first, pieces)

    def step(  # type: ignore[override]
        self, closure: Closure | None = None, *, perturbed_loss: Tensor | float | None = None
    ) -> Tensor | float | None:
        """One step.

        Args:
            closure: runs forward and backward, returns the loss; called twice, or once where the ascent wants no second
                pass. Gradients are cleared before each call. Without one, `with sam.perturbed():` has done both passes,
                and this finishes the step.
            perturbed_loss: without a closure, this rank's loss of the second pass, if it is to be reported; on every
                rank or on none.

        Returns:
            What the closure returned at the unperturbed weights: this rank's loss.

        Raises:
            RuntimeError: no closure and no `perturbed` before.
            InputError: no parameter has a gradient.
            TrainingDiverged: too many skipped steps in a row.
        """
        has_second = self.ascent.wants_second(self.num_steps + 1)
        if closure is None:
            if self._pending is None and self.is_primed():
                return None
            if self._pending is None and not has_second:
                self._finish_first(None)
            else:
                self._finish_second(perturbed_loss)
            self._left = self._smallest_gradient()
            return None
        self._forget_gradients()
        if not has_second:
            loss = self.evaluate(closure)
            self._finish_first(loss)
            return loss
        self._random.record()
        loss = self.evaluate(closure)
        pending = self._ascend(loss)
        try:
            self._random.repeat()
            with self._kept_buffers:
                second_loss = self.evaluate(closure)
        finally:
            self._perturbation.leave()
        self._pending = pending
        self._finish_second(second_loss)
        return loss

    @contextmanager
    def perturbed(self, loss: Tensor | float | None = None) -> Iterator[None]:
        """Weights at w + epsilon inside, w again afterwards, bit for bit, whatever happens inside.

        For loops without a closure: backward; `with sam.perturbed(): backward again`; `sam.step()`. On entry the
        first pass is measured and `.grad` is emptied; inside, run forward and backward on the same batch. The two
        losses are reported, and looked at for being finite, if they are given to `perturbed` and `step`.

        Args:
            loss: this rank's loss at w, if it is to be reported; on every rank or on none.

        Collectives: one small all_reduce on entry; every rank enters.

        Raises:
            RuntimeError: the weights are perturbed already.
        """
        self._check_cleared()
        pending = self._ascend(loss)
        try:
            with self._kept_buffers:
                yield
        except BaseException:
            self.guard.discard()
            raise
        finally:
            self._perturbation.leave()
        self._pending = pending

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Asked for by torch.amp.GradScaler.step alone, before it steps."""
        raise RuntimeError(f"GradScaler.step(): {_NO_SCALER}")

    def _forget_gradients(self) -> None:
        # Of the step before, or of a backward before this call: a closure that does not clear them would add to them.
        for group in self.param_groups:
            for param in group["params"]:
                param.grad = None

    def _smallest_gradient(self) -> tuple[Tensor, int] | None:
        """A gradient in place, the smallest because it is kept alive, and how often it was changed."""
        grads = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        grad = min(grads, key=Tensor.numel, default=None)
        return None if grad is None else (grad, grad._version)

    def _check_cleared(self) -> None:
        left, self._left = self._left, None
        now = self._smallest_gradient()
        # Changed once since then: one backward has added to it. Zeroing it in place would have been a change more.
        if left is not None and now is not None and now[0] is left[0] and now[1] == left[1] + 1:
            # No error: other ranks, which may not have seen it, would wait for this one.
            warnings.warn(
                "sam.perturbed(): the gradients of the step before are still there, and those of this step were added "
                "to them; call zero_grad() before the first pass of each step",
                stacklevel=4,
            )

    def _ascend(self, loss: Tensor | float | None) -> tuple[Sweep, float | Tensor, Gradients]:
        """Measure the first pass and perturb the weights."""
        if self._perturbation.is_inside:
            raise RuntimeError("the weights are perturbed already: inside sam.perturbed() run the second pass only")
        self._pending = None
        with torch.no_grad():
            sweep = self._measure_first(loss)
            scales, directions = self.ascent.epsilon(sweep)
            scales = _finite(scales)
            sweep.pieces.clear()
            self._perturbation.enter(sweep.pieces, self._without_still(sweep.rho, directions), scales)
        return sweep, scales, directions

    def _measure_first(self, loss: Tensor | float | None) -> Sweep:
        meter = self.guard.meter
        probe = (lambda found: self.ascent.probes(meter.pieces, found)) if self._has_probes else None
        first, grads = self.guard.first_pass(loss, probe)
        return Sweep(meter.pieces, self.num_steps + 1, grads, first, self._radii())

    def _radii(self) -> float | Tensor:
        meter = self.guard.meter
        rho = self._rho.per_parameter(self.param_groups, meter.params)
        if isinstance(rho, list):
            # Of a few bytes, which the driver takes before it returns: the host does not wait.
            return torch.tensor(rho, dtype=torch.float64).to(meter.device, non_blocking=True)
        return rho

    def _without_still(self, rho: float | Tensor, directions: Gradients) -> Gradients:
        """None for a parameter of a group that is not perturbed: its weights need no copy."""
        if not isinstance(rho, Tensor):
            return directions if rho else [None] * len(directions)
        rhos = self._rho.per_parameter(self.param_groups, self.guard.meter.params)
        assert isinstance(rhos, list)
        return [d if r else None for d, r in zip(directions, rhos, strict=True)]

    def _finish_first(self, loss: Tensor | float | None) -> None:
        """A step without a second pass: measure, decide, step."""
        with torch.no_grad():
            sweep = self._measure_first(loss)
            if self.guard.accepts(sweep.first):
                self._descend(sweep, sweep.grads)
        self.guard.finish(sweep.first, is_combined=self._is_combined)

    def _finish_second(self, second_loss: Tensor | float | None) -> None:
        """Measure the second pass, decide, step."""
        if self._pending is None:
            raise RuntimeError(
                "SAM.step() without a closure: run both passes first, the second one inside "
                f"`with sam.perturbed():`, or pass a closure. {_NO_SCALER}"
            )
        sweep, scales, directions = self._pending
        self._pending = None
        guard, first = self.guard, sweep.first
        core_scales = scales[: guard.meter.num_cores] if isinstance(scales, Tensor) and scales.dim() else scales

        def probe(found: list[Tensor | None]) -> Tensor | None:
            sweep.perturbed_grads = found
            return self.ascent.second_probes(sweep)

        with torch.no_grad():
            sweep.second, grads = guard.second_pass(
                second_loss, (directions, core_scales), probe if self._has_second_probes else None
            )
            sweep.perturbed_grads = grads
            if guard.accepts(first, sweep.second):
                self._descend(sweep, grads)
        # The law of the first order is that of a perturbation along the gradient.
        is_along_gradient = directions is sweep.grads and guard.is_due
        radius = torch.zeros_like(first.gamma) + core_scales if is_along_gradient else None
        guard.finish(first, sweep.second, radius, self._is_combined)

    def _descend(self, sweep: Sweep, grads: list[Tensor | None]) -> None:
        check_any(grads)
        norm_sq = self.ascent.combine(sweep)
        self._is_combined = norm_sq is not None
        if self.guard.clip_norm is not None:
            self.guard.clip(grads, (sweep.second or sweep.first).grad_norm_sq if norm_sq is None else norm_sq)
        self.apply(sweep.first, sweep.pieces)


def _finite(scales: float | Tensor) -> float | Tensor:
    """0 where a scale is not finite: a norm that is 0 or no number."""
    if not isinstance(scales, Tensor):
        return float(scales) if math.isfinite(scales) else 0.0
    if scales.dim() == 0 and scales.device.type == "cpu":
        return scales if math.isfinite(scales.item()) else torch.zeros_like(scales)
    return torch.nan_to_num(scales, nan=0.0, posinf=0.0, neginf=0.0)
