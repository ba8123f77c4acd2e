"""In a step the host reads one flag, in `accepts`, and waits for nothing else.

Shown without an accelerator, on the meta device: its tensors have no values, so that torch raises where one is read.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from methods import Build, every_method
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import distsam
from distsam.balance import coordinator as coordinator_file
from distsam.optim.guard import StepGuard

RATES: dict[str, Callable[[], list[float | Tensor]]] = {
    "one rate": lambda: [0.1, 0.1],
    "two rates": lambda: [0.1, 0.2],
    "a rate on the device": lambda: [0.1, torch.full((), 0.2, device="meta")],
}


class Copies(TorchDispatchMode):
    """Raises where a tensor goes from one device to another in a way that makes the host wait."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        leaves = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, Tensor)]
        # A () tensor of the host goes along as an argument of the kernel.
        if len({t.device for t in leaves if t.dim() > 0}) > 1 and not kwargs.get("non_blocking"):
            raise AssertionError(f"{func}: the host waits for a copy")
        return out


class Still(torch.optim.SGD):
    """Moves nothing: what a base optimizer does with a rate on the device is its own affair."""

    def step(self, closure: Any = None) -> None:
        """Leave the weights."""


def networks_on_meta() -> nn.ModuleList:
    model = nn.ModuleList(distsam.TensorNetwork(spec) for spec in (distsam.tt((8, 6, 4), 3), distsam.cp((8, 6), 2)))
    return model.to("meta")


def closure_of(model: nn.ModuleList) -> Callable[[], Tensor]:
    indices = torch.zeros(5, 3, dtype=torch.int64, device="meta")

    def closure() -> Tensor:
        for p in model.parameters():
            p.grad = None
        loss = model[0].at(indices).square().sum() + model[1].dense().sum()
        loss.backward()
        return loss

    return closure


def forbid_tensors_from_host(monkeypatch: pytest.MonkeyPatch) -> None:
    make = torch.tensor

    def checked(*args: Any, device: Any = "cpu", **kwargs: Any) -> Tensor:
        assert torch.device(device or "cpu").type == "cpu", "torch.tensor copies numbers to the device, and waits"
        return make(*args, **kwargs)

    monkeypatch.setattr(torch, "tensor", checked)


@pytest.mark.parametrize("rates", RATES.values(), ids=RATES.keys())
@every_method
def test_the_host_waits_nowhere_but_in_accepts(
    monkeypatch: pytest.MonkeyPatch, build: Build, rates: Callable[[], list[float | Tensor]]
) -> None:
    model = networks_on_meta()
    groups = [{"params": list(n.parameters()), "lr": lr} for n, lr in zip(model, rates(), strict=True)]
    optimizer = build(Still(groups), model)
    closure = closure_of(model)
    # The copies of the coordinator cannot run here; that they do not wait is written in them.
    monkeypatch.setattr(coordinator_file, "_copy_to_host", lambda *_: lambda: None)
    distsam.BalanceCoordinator(model, optimizer)
    with pytest.raises(RuntimeError, match="meta"):
        optimizer.step(closure)  # type: ignore[arg-type]

    def accept(guard: StepGuard, *_: Any) -> bool:
        guard._accepted = True
        return True

    monkeypatch.setattr(StepGuard, "accepts", accept)
    optimizer.step(closure)  # type: ignore[arg-type]  # tables are built once
    forbid_tensors_from_host(monkeypatch)
    with Copies():
        for _ in range(2):
            optimizer.step(closure)  # type: ignore[arg-type]
