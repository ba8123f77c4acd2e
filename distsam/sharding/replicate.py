"""Gradients of parameters that the data ranks hold alike, averaged over them while backward runs.

The hooks sit on the parameters, so any method of the model may be differentiated (`at`, `dense`, `forward`),
and a rank on which a parameter had no gradient still takes part: with zeros, and with a 0 in a count that says on
how many ranks there was one. Where that is none, no gradient is left, as in one process.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from weakref import ReferenceType, ref

import torch
from torch import Tensor, nn
from torch.autograd import Variable
from torch.distributed import ProcessGroup
from torch.utils.weak import WeakIdKeyDictionary

from distsam.sharding.buckets import EXACT, SMALL_BYTES, Reduction, bucketed
from distsam.sharding.collectives import start_all_reduce_sum_, world_size
from distsam.sharding.local import local_tensor, placed_like


@dataclass
class _Bucket:
    params: list[nn.Parameter]
    missing: set[int] = field(default_factory=set)  # ids of those that have no gradient of this backward yet
    sent: list[nn.Parameter] = field(default_factory=list)
    buffer: Tensor | None = None
    wait: Callable[[], None] | None = None

    def active(self) -> list[nn.Parameter]:
        """Those that are not frozen now; the same on every rank."""
        return [p for p in self.params if p.requires_grad]


class GradientAverager:
    """Averages the gradients of replicated parameters over the data axes at the end of every backward.

    A parameter that no rank's loss used keeps `.grad` None; one that is frozen is passed over as long as it is.
    The host reads the counts only on a rank, and only in a backward, where a gradient is missing.

    Args:
        params: plain parameters, or DTensors whose pieces the ranks of `group` hold alike; the same list in the same
            order on every rank.
        group: the ranks whose gradients differ, those along the data axes; None is the world. Where FSDP2 reduces in
            the same backward it must be another group than FSDP2's: ranks may start the two in different orders.
        reduction: the dtype and the size of messages.

    Attributes:
        is_paused: True while backwards only add up this rank's gradients (`accumulating`).

    Collectives: per backward one asynchronous all_reduce(sum) per bucket (`bucketed`), started as soon as
        the bucket's gradients are there and always in the same order; every rank must run the backward. A rank whose
        backward reached none of the parameters takes part in `complete`.
    """

    def __init__(
        self, params: Sequence[nn.Parameter], group: ProcessGroup | None = None, reduction: Reduction = EXACT
    ) -> None:
        self._group, self._reduction = group, reduction
        self._num_ranks = world_size(group)
        # Backward reaches the last layers first: their bucket goes first.
        self._buckets = self._fill_buckets([p for p in reversed(params) if p.is_floating_point() or p.is_complex()])
        self.is_paused = False
        self._next = 0
        self._backward: int | None = None
        self._has_averaged = False
        self._companions: Tensor | None = None  # what travels behind the gradients, and what came back of it
        self._sums = torch.zeros(0)
        for bucket in self._buckets:
            for param in bucket.params:
                _hook_gradient(param, self._on_gradient(bucket))
                _AVERAGERS[param] = ref(self)  # the hooks keep it alive as long as the parameter

    @property
    def num_params(self) -> int:
        """How many parameters it averages."""
        return sum(len(bucket.params) for bucket in self._buckets)

    @property
    def is_small(self) -> bool:
        """True if all gradients fit one small message of float32 or float64 to the whole world."""
        if len(self._buckets) != 1 or self._num_ranks != world_size() or self._reduction.dtype is not None:
            return False
        first = self._buckets[0].params[0]
        num_bytes = sum(local_tensor(p).numel() for p in self._buckets[0].params) * first.element_size()
        return num_bytes <= SMALL_BYTES and first.dtype in (torch.float32, torch.float64)

    def complete(self) -> None:
        """End of a pass: a rank whose backward reached none of the parameters takes part here, with zeros.

        Collectives: those of one backward on a rank that has not averaged since the last call; else none.
        """
        if not self._has_averaged or all(p.grad is None for b in self._buckets for p in b.params):
            self._start_over()
            self._finish()
        self._has_averaged = False

    def forget(self) -> None:
        """Forget a pass that raised on every rank: the next `complete` must not take its averages for its own."""
        self._start_over()
        self._has_averaged = False

    def complete_with(self, numbers: Tensor) -> Tensor:
        """End of a pass whose backwards were paused: average now, and add up `numbers` over the ranks on the way.

        Only where `is_small`.

        Args:
            numbers: 1-D, on the gradients' device.

        Returns:
            Their sums, in the dtype of the gradients.

        Collectives: one all_reduce(sum) of all gradients, a number for each parameter, and `numbers`.
        """
        self._start_over()
        self._companions = numbers
        self._finish()
        self._companions, self._has_averaged = None, False
        return self._sums

    def _fill_buckets(self, params: Sequence[nn.Parameter]) -> list[_Bucket]:
        itemsize = self._reduction.itemsize
        sizes = [(local_tensor(p).numel() * itemsize(p.element_size()), (p.dtype, p.device)) for p in params]
        found = bucketed(sizes, self._num_ranks, self._reduction.link)
        return [_Bucket([params[position] for position in bucket]) for bucket in found]

    def _on_gradient(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def hook(param: Tensor) -> None:
            if self.is_paused:
                return
            # By its number, because a backward that raised has never ended. Torch has no public name for it.
            backward = torch._C._current_graph_task_id()
            if self._backward != backward:
                self._start_over()
                self._backward = backward
                # Queued by a queued call, so that it comes after FSDP2's own, which may still reduce gradients: a
                # rank must not wait here before it has sent those.
                queue = Variable._execution_engine.queue_callback
                queue(lambda: queue(self._finish))
            bucket.missing.discard(id(param))
            self._launch_complete()

        return hook

    def _start_over(self) -> None:
        self._backward, self._next = None, 0
        for bucket in self._buckets:
            bucket.missing = {id(p) for p in bucket.active()}
            bucket.sent = []
            bucket.buffer = bucket.wait = None

    def _launch_complete(self) -> None:
        while self._next < len(self._buckets) and not self._buckets[self._next].missing:
            self._launch(self._buckets[self._next])

    @torch.no_grad()
    def _launch(self, bucket: _Bucket) -> None:
        """Send the gradients, and behind them for each parameter whether this rank has one."""
        self._next += 1
        bucket.sent = bucket.active()
        if not bucket.sent and self._companions is None:
            return
        is_there = [p.grad is not None for p in bucket.sent]
        counts = local_tensor(bucket.params[0]).new_ones(len(is_there))
        if not all(is_there):
            counts = counts.new_tensor(is_there)
        grads = [torch.zeros_like(local_tensor(p)) if p.grad is None else local_tensor(p.grad) for p in bucket.sent]
        companions = counts[:0] if self._companions is None else self._companions.to(counts.dtype)
        bucket.buffer = torch.cat([*(g.reshape(-1) for g in grads), counts, companions])
        # Before the sum, which float16 might not hold.
        bucket.buffer[: len(bucket.buffer) - len(counts) - len(companions)].div_(self._num_ranks)
        if self._reduction.dtype is not None:
            bucket.buffer = bucket.buffer.to(self._reduction.dtype)
        bucket.wait = start_all_reduce_sum_(bucket.buffer, self._group)

    @torch.no_grad()
    def _finish(self) -> None:
        while self._next < len(self._buckets):
            self._launch(self._buckets[self._next])
        for bucket in self._buckets:
            if bucket.wait is not None and bucket.buffer is not None:
                bucket.wait()
                self._sums = _take(bucket.sent, bucket.buffer)
        self._start_over()
        self._has_averaged = True


# Parameter -> its averager, for Pieces, which know only parameters.
_AVERAGERS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def averagers_of(params: Iterable[nn.Parameter]) -> tuple[GradientAverager, ...]:
    """What averages the gradients of `params`; () where `shard` left none of them whole."""
    found: dict[int, GradientAverager] = {}
    for param in params:
        weak: ReferenceType[GradientAverager] | None = _AVERAGERS.get(param)
        averager = weak() if weak is not None else None
        if averager is not None:
            found[id(averager)] = averager
    return tuple(found.values())


def _hook_gradient(param: nn.Parameter, hook: Callable[[Tensor], None]) -> None:
    """Call `hook` when a backward has left a gradient; a parameter that is frozen now may be trained later."""
    is_trained = param.requires_grad
    param.requires_grad_(True)
    param.register_post_accumulate_grad_hook(hook)
    param.requires_grad_(is_trained)


def _take(params: Sequence[nn.Parameter], buffer: Tensor) -> Tensor:
    """Put the means in place of the gradients, None where no rank has one; what came behind them is returned."""
    pieces = [local_tensor(p) for p in params]
    lengths = [piece.numel() for piece in pieces]
    *sent, counts, sums = buffer.split([*lengths, len(params), len(buffer) - sum(lengths) - len(params)])
    means = [x.view_as(piece) for x, piece in zip(sent, pieces, strict=True)]
    if any(p.grad is None for p in params):
        for param, mean, count in zip(params, means, counts.tolist(), strict=True):
            if param.grad is None and count > 0:
                param.grad = placed_like(param, torch.empty_like(mean).copy_(mean))
    kept = [(local_tensor(p.grad), mean) for p, mean in zip(params, means, strict=True) if p.grad is not None]
    if kept:
        torch._foreach_copy_([g for g, _ in kept], [mean for _, mean in kept])
    return sums.clone()  # not a view, which would keep the memory of all gradients
