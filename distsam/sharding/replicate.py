"""Gradients of replicated parameters, averaged over the world while backward runs.

The hooks sit on the parameters, so any method of the model may be differentiated (`at`, `dense`, `forward`),
and a rank on which a parameter had no gradient still takes part, with zeros.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd import Variable

from distsam.sharding.collectives import start_all_reduce_sum_, world_size

BUCKET_BYTES = 25 * 2**20


@dataclass
class _Bucket:
    params: list[nn.Parameter]
    ready: set[int] = field(default_factory=set)
    buffer: Tensor | None = None
    wait: Callable[[], None] | None = None


class GradientAverager:
    """Averages the gradients of replicated parameters over the world at the end of every backward.

    Args:
        params: plain parameters, the same list in the same order on every rank.

    Collectives: per backward one asynchronous all_reduce(sum) per bucket of at most 25 MiB, started as soon as
        the bucket's gradients are there and always in the same order; every rank must run the backward.
    """

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        # Backward reaches the last layers first: their bucket goes first.
        self._buckets = _fill_buckets([p for p in reversed(params) if p.requires_grad])
        self._next = 0
        self._is_armed = False
        for bucket in self._buckets:
            for param in bucket.params:
                param.register_post_accumulate_grad_hook(self._on_gradient(bucket))

    def _on_gradient(self, bucket: _Bucket) -> Callable[[Tensor], None]:
        def hook(param: Tensor) -> None:
            if not self._is_armed or id(param) in bucket.ready:
                # A second arrival without an end in between means that the last backward raised.
                self._start_over()
                Variable._execution_engine.queue_callback(self._finish)
            bucket.ready.add(id(param))
            self._launch_complete()

        return hook

    def _start_over(self) -> None:
        self._is_armed, self._next = True, 0
        for bucket in self._buckets:
            bucket.ready.clear()
            bucket.buffer = bucket.wait = None

    def _launch_complete(self) -> None:
        while self._next < len(self._buckets):
            bucket = self._buckets[self._next]
            if len(bucket.ready) < len(bucket.params):
                return
            self._launch(bucket)

    @torch.no_grad()
    def _launch(self, bucket: _Bucket) -> None:
        for param in bucket.params:
            if param.grad is None:
                param.grad = torch.zeros_like(param)
        bucket.buffer = torch.cat([_grad(p).reshape(-1) for p in bucket.params])
        bucket.wait = start_all_reduce_sum_(bucket.buffer)
        self._next += 1

    @torch.no_grad()
    def _finish(self) -> None:
        while self._next < len(self._buckets):
            self._launch(self._buckets[self._next])
        for bucket in self._buckets:
            if bucket.wait is None or bucket.buffer is None:
                continue
            bucket.wait()
            pieces = bucket.buffer.div_(world_size()).split([p.numel() for p in bucket.params])
            grads = [_grad(p) for p in bucket.params]
            torch._foreach_copy_(grads, [x.view_as(g) for x, g in zip(pieces, grads, strict=True)])
        self._start_over()
        self._is_armed = False


def _grad(param: nn.Parameter) -> Tensor:
    assert param.grad is not None
    return param.grad


def _fill_buckets(params: Sequence[nn.Parameter]) -> list[_Bucket]:
    buckets: list[_Bucket] = []
    room = 0
    for param in params:
        size = param.numel() * param.element_size()
        last = buckets[-1].params[-1] if buckets else None
        if last is None or size > room or last.dtype != param.dtype or last.device != param.device:
            buckets.append(_Bucket([]))
            room = BUCKET_BYTES
        buckets[-1].params.append(param)
        room -= size
    return buckets
