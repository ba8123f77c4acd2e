"""Who runs forward, backward and step: DeepSpeed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from distsam.engine.deepspeed import library
from distsam.engine.deepspeed.arrivals import Arrivals
from distsam.engine.deepspeed.base import SteppedByDeepSpeed
from distsam.engine.deepspeed.cut_pieces import CutPieces
from distsam.engine.deepspeed.entry_points import gather_in_entry_points
from distsam.engine.deepspeed.pieces import FlatPieces
from distsam.engine.deepspeed.settings import settings_for
from distsam.engine.deepspeed.state import FlatState
from distsam.engine.deepspeed.weights import CutWeights
from distsam.engine.native import NativeEngine
from distsam.engine.schedule import Schedule
from distsam.errors import ArgumentError, SharedInputError
from distsam.optim import Wrapper


class DeepSpeedEngine(NativeEngine):
    """The Engine of DeepSpeed's ZeRO, stages 0 to 3; see `Engine` for what each method promises.

    DeepSpeed averages the gradients, steps the base optimizer on this rank's part, and sends the weights round. SAM,
    DAS and BAR work on that part; norms are summed over the ranks, as everywhere. A parameter that no loss reaches has
    a gradient of zeros (natively none): weight decay moves it.

    From stage 1 on every rank's loss must run through the same modules in the same order. Where a pass did not, all
    ranks end with an InputError; where the ranks' gradients are not even of the same size, DeepSpeed's own collectives
    fail or wait first. At stage 3 weights are whole inside the model's forward, and inside `at` and `dense` of its
    networks (which run the network's forward hooks): read elsewhere they are empty.

    Args:
        model: whole, in float32, on this rank's device; its weights become those of rank 0. Not placed by `shard`.
        optimizer: over the model's parameters; its innermost torch optimizer is handed to DeepSpeed.
        stage: of ZeRO.
        settings: DeepSpeed's config, see `settings_for`.
        known, instead: DeepSpeed's keys that are given elsewhere, see `settings_for`.
        autocast, clip_norm, schedules: as for NativeEngine.

    Collectives: DeepSpeed's own, and those of the optimizer; every rank builds one.

    Raises:
        ArgumentError: a setting that contradicts or breaks SAM, a stage that there is not, weights that are not
            float32, or a deepspeed that is not installed.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Wrapper,
        *,
        stage: int,
        settings: Mapping[str, Any] | None = None,
        known: Mapping[str, tuple[str, Any]] | None = None,
        instead: Mapping[str, str] | None = None,
        autocast: torch.dtype | None = None,
        clip_norm: float | None = None,
        schedules: Sequence[Schedule] = (),
    ) -> None:
        super().__init__(model, optimizer, autocast=autocast, clip_norm=clip_norm, schedules=schedules)
        config = settings_for(stage, settings or {}, known, instead)
        # At stage 3 a buffer of that size is held, by default of 5e8 elements however small the model is.
        num_elements = sum(p.numel() for p in model.parameters())
        config["zero_optimization"].setdefault("reduce_bucket_size", min(num_elements, 500_000_000))
        _check_weights(model)
        base = optimizer.base_optimizer
        stepped = SteppedByDeepSpeed(base)
        self._engine = library.initialize(model, base, config, has_users=bool(settings))
        self._zero = self._engine.optimizer if stage else None
        stepped.follow(self._engine)
        optimizer.chain()[-1].base = stepped
        self._cut = CutWeights(model, self._zero) if stage == 3 else None
        if stage == 3:
            gather_in_entry_points(model)
        self._flat: FlatState | None = None
        if stage:
            self._arrivals = Arrivals([p for p in model.parameters() if p.requires_grad])
            kind = CutPieces if stage == 3 else FlatPieces
            optimizer.use_pieces(partial(kind, self._zero, self._arrivals))
            self._flat = FlatState(model, base, self._zero)

    def step(self, losses: Sequence[Callable[[], Tensor]]) -> Tensor:
        """One update of the weights; see `Engine.step`.

        Raises:
            ArgumentError: from stage 1 on, an ascent that keeps tensors of its own; in the first step.
            InputError: from stage 1 on, losses that came to other parameters than on other ranks; on all of them.
        """
        if self._flat is None:
            return super().step(losses)
        self._flat.take_in()
        self._arrivals.begin_step()
        num_skipped = self.optimizer.num_skipped
        try:
            loss = super().step(losses)
        finally:
            # In place of the error about shapes that it brings.
            self._check_own_state()
        if self.optimizer.num_skipped > num_skipped and self._arrivals.differ():
            raise SharedInputError(_OTHER_PARAMETERS)
        return loss

    def _check_own_state(self) -> None:
        for wrapper in self.optimizer.chain():
            if wrapper.own_state:
                raise ArgumentError(
                    "stage",
                    f"{wrapper.name} keeps tensors of whole parameters, and from stage 1 on a rank has flat parts of "
                    "them; use stage 0, or the native engine",
                ) from None

    def _sweep(self, losses: Sequence[Callable[[], Tensor]]) -> Tensor:
        """Gradients of the mean over the micro-batches; DeepSpeed averages them at the last one."""
        if self._zero is not None:
            library.forget_gradients(self._zero)
            self._arrivals.begin_pass()
        for group in self.optimizer.param_groups:
            for param in group["params"]:
                param.grad = None
        count, parts = len(losses), []
        for position, compute in enumerate(losses):
            self._engine.set_gradient_accumulation_boundary(position == count - 1)
            parts.append(self._backward(compute, count))
        return parts[0] if count == 1 else torch.stack(parts).sum(0)

    def _backward(self, compute_loss: Callable[[], Tensor], count: int) -> Tensor:
        if self._zero is not None:
            library.forget_backward(self._zero)
        with nullcontext() if self._autocast is None else torch.autocast(self._device_type, self._autocast):
            loss = compute_loss()
        part = loss if count == 1 else loss / count
        try:
            library.backward(self._engine, part)
        except RuntimeError as error:
            if self._cut is None or "invalid gradient" not in str(error):
                raise
            raise SharedInputError(_READ_ELSEWHERE) from None
        return part.detach()

    def state(self) -> dict[str, Any]:
        """As NativeEngine's."""
        state = super().state()
        return state if self._flat is None else {**state, "base": self._flat.plain()}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` gave; see `Engine.load_state`."""
        if self._flat is None:
            super().load_state(state)
            return
        super().load_state({**state, "base": {}})
        self._flat.load_plain(state["base"])

    def weights(self) -> dict[str, Tensor]:
        """As NativeEngine's; copies at stage 3. Collectives: see `CutWeights.tensors`."""
        return super().weights() if self._cut is None else self._cut.tensors()

    def put_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Set the weights. Collectives at stage 3: see `CutWeights.put`."""
        if self._cut is None:
            super().put_weights(tensors)
        else:
            self._cut.put(tensors)
        if self._zero is not None:
            # The copy that the base steps.
            self._zero.refresh_fp32_params()

    def state_tensors(self) -> dict[str, Tensor]:
        """`optim.<parameter>.<key>` of the base: copies from stage 1 on. Collectives: see `FlatState.tensors`."""
        return super().state_tensors() if self._flat is None else self._flat.tensors()

    def allocate_state(self, shapes: Mapping[str, tuple[torch.Size, torch.dtype]]) -> dict[str, Tensor]:
        """Room for a checkpoint's tensors, which the next step takes in; see `Engine.allocate_state`."""
        if self._flat is None:
            return super().allocate_state(shapes)
        self._flat.allocate(shapes)
        return self._flat.incoming()


_OTHER_PARAMETERS = (
    "engine: the ranks' losses came to different parameters, or to the same in another order, and from stage 1 on "
    "DeepSpeed would add up gradients of different weights; run every loss through the same modules, or use stage 0 or "
    "the native engine"
)
_READ_ELSEWHERE = (
    "engine: the loss read weights outside the model's forward, where at stage 3 they are empty; read them inside it "
    "(a penalty on weights too), or use a lower stage"
)


def _check_weights(model: nn.Module) -> None:
    """ArgumentError of a weight that DeepSpeed cannot take; one that is laid out otherwise is laid out as usual."""
    for name, param in model.named_parameters():
        if param.dtype != torch.float32:
            raise ArgumentError("model", f"{name} is {param.dtype}: DeepSpeed's ZeRO takes float32")
        if not param.dim() or not param.numel():
            what = "a number without a dim; give it the shape (1,)" if not param.dim() else "empty; leave it out"
            raise ArgumentError("model", f"{name} is {what}: DeepSpeed cannot send it")
        if not param.is_contiguous():
            param.data = param.data.contiguous()
