"""What runs on fake tensors, written down: bytes that live, by what they are for, collectives, arithmetic."""

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from enum import IntEnum
from typing import Any
from weakref import ref

import torch
import torch.distributed as dist
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, unset_fake_temporarily
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from distsam.sharding import local_tensor
from distsam.sharding.fake_world import replaced
from distsam.sharding.traffic import ALL_GATHER, ALL_REDUCE, REDUCE_SCATTER, Collective

_NAMESPACES = ("c10d", "_c10d_functional", "_dtensor")
_NO_COLLECTIVE = ("wait_tensor", "_wrap_tensor_autograd")
# How an operator's name begins, without underscores -> what it is.
_KINDS = {"allgather": ALL_GATHER, "reducescatter": REDUCE_SCATTER, "allreduce": ALL_REDUCE}


class Use(IntEnum):
    """What bytes are for; what is known later and better is the larger number."""

    WORKING = 0  # activations, the batch, and what lives between two calls
    COMMUNICATION = 1  # messages, and weights that were gathered for a pass
    GRADIENTS = 2
    COPY = 3
    STATE = 4
    OTHER_PARAMETERS = 5
    CORES = 6


class Ledger(TorchDispatchMode):
    """Notes everything that tensors do inside `watching`, which is entered inside a FakeTensorMode.

    Where the host reads a fake tensor it gets 1.0, 0 or True: numbers are finite, positions are in their mode, a check
    holds. An operation on real tensors alone is done: such are the ranks of a mesh, and what is read of them is true.

    Attributes:
        collectives: in their order, since `begin`.
        flops: multiplications and additions of matrix products and convolutions as torch counts them, and one for each
            element that any other operation makes; since `begin`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.collectives: list[Collective] = []
        self.flops = 0
        # Storage's address -> its number, and a weak reference that says when it is gone.
        self._known: dict[int, tuple[int, Any]] = {}
        self._sizes: list[int] = []
        self._uses: list[Use] = []
        self._changes: list[tuple[int, int]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Note what happens inside, on this thread."""
        # FSDP2 frees and takes the memory of gathered weights behind torch's dispatch.
        resize = torch.UntypedStorage.resize_

        def resize_and_note(storage: torch.UntypedStorage, size: int) -> Any:
            resized = resize(storage, size)
            self._resized(storage)
            return resized

        with replaced(torch.UntypedStorage, "resize_", resize_and_note), self:
            yield

    def begin(self) -> None:
        """Forget all but what is alive."""
        self.collectives, self.flops = [], 0
        self._changes = [(number, self._sizes[number]) for number, _ in self._known.values()]

    def label(self, use: Use, tensors: Iterable[Tensor | None]) -> None:
        """Say what the memory of these tensors is for, of this rank's pieces of DTensors; earlier and later."""
        for tensor in tensors:
            if tensor is not None:
                number = self._number(local_tensor(tensor))
                self._uses[number] = max(self._uses[number], use)

    def most(self) -> tuple[dict[Use, int], int]:
        """The largest number of bytes of each use since `begin`, and of all together at one time."""
        now: Counter[Use] = Counter()
        most = dict.fromkeys(Use, 0)
        total = peak = 0
        for number, change in self._changes:
            use = self._uses[number]
            now[use] += change
            total += change
            most[use], peak = max(most[use], now[use]), max(peak, total)
        return most, peak

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(kind is DTensor for kind in types):
            return NotImplemented  # DTensor takes itself apart first; its local calls come back here
        kwargs = kwargs or {}
        given = _tensors_in((args, kwargs))
        if given and not any(isinstance(tensor, FakeTensor) for tensor in given):
            with unset_fake_temporarily():
                out = func(*args, **kwargs)
        elif func is torch.ops.aten._local_scalar_dense.default:
            return _answer(args[0].dtype)
        else:
            out = func(*args, **kwargs)
        made = _tensors_in(out)
        self._count_work(func, args, kwargs, out, made)
        for tensor in made:
            self._number(tensor)
        if func.namespace in _NAMESPACES:
            self._count_collective(func, args, kwargs, [*given, *made])
        return out

    def _count_work(self, func: Any, args: Any, kwargs: Any, out: Any, made: list[Tensor]) -> None:
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        elif func._schema.is_mutable or not all(t.untyped_storage()._cdata in self._known for t in made):
            self.flops += sum(tensor.numel() for tensor in made)

    def _count_collective(self, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
        name = func._schema.name.split("::")[1]
        if name in _NO_COLLECTIVE:
            return
        plain = name.replace("_", "")
        kind = next((kind for word, kind in _KINDS.items() if plain.startswith(word)), name.strip("_"))
        num_bytes = max((tensor.numel() * tensor.element_size() for tensor in tensors), default=0)
        self.collectives.append(Collective(kind, num_bytes, _group_size(args, kwargs)))
        self.label(Use.COMMUNICATION, tensors)

    def _number(self, tensor: Tensor) -> int:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._known:
            return self._known[address][0]
        # On the meta device a core waits for its memory.
        number, size = len(self._sizes), 0 if tensor.is_meta else storage.nbytes()
        self._known[address] = number, ref(storage, lambda _: self._is_gone(address))
        self._sizes.append(size)
        self._uses.append(Use.WORKING)
        self._changes.append((number, size))
        return number

    def _resized(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self._known:
            number, _ = self._known[storage._cdata]
            self._changes.append((number, storage.nbytes() - self._sizes[number]))
            self._sizes[number] = storage.nbytes()
            self._uses[number] = max(self._uses[number], Use.COMMUNICATION)

    def _is_gone(self, address: int) -> None:
        number, _ = self._known.pop(address)
        self._changes.append((number, -self._sizes[number]))
        self._sizes[number] = 0


def _tensors_in(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _answer(dtype: torch.dtype) -> float | int | bool:
    if dtype == torch.bool:
        return True
    return 1.0 if dtype.is_floating_point else 0


def _group_size(args: Any, kwargs: Any) -> int:
    """Of the process group among the arguments of a collective: an object of C++, or at the end its name."""
    leaves = tree_leaves((args, kwargs))
    for leaf in leaves:
        if isinstance(leaf, torch.ScriptObject) and "ProcessGroup" in str(leaf._type()):
            return dist.ProcessGroup.unbox(leaf).size()
    names = [leaf for leaf in leaves if isinstance(leaf, str)]
    return dist.distributed_c10d._resolve_process_group(names[-1]).size()  # type: ignore[arg-type]
