"""Weights that FSDP2 has gathered for a pass: put away after a pass that raised."""

from collections.abc import Iterable
from weakref import ReferenceType, ref

from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor
from torch.utils.weak import WeakIdKeyDictionary

# Sharded parameter -> the model it was sharded in; weak on both sides.
_MODELS: WeakIdKeyDictionary = WeakIdKeyDictionary()


def remember(model: nn.Module) -> None:
    """Note for each sharded parameter where it belongs."""
    for param in model.parameters():
        if isinstance(param, DTensor):
            _MODELS[param] = ref(model)


def discard_pass(params: Iterable[nn.Parameter]) -> None:
    """Forget a forward or backward that raised: free the whole weights and FSDP2's half-done gradients.

    What it cut off would have put them away; without this the next forward computes with the weights of that pass.
    After a raise in backward that needs torch 2.13: before it FSDP2 cannot forget half-done gradients, and after such
    an error the model must be built anew.

    Collectives: none; in flight ones are waited for, so every rank's pass must have raised.
    """
    for model in _models(params):
        wrapped = _wrapped(model)
        for module in wrapped:
            _forget_gradients(module)
        for module in [model] if isinstance(model, FSDPModule) else wrapped:
            # A root without a first forward has nothing to forget, and no room for it yet: it would fail.
            if module._get_fsdp_state()._is_root:
                # New in torch 2.13.
                getattr(module, "reset_iter_state", lambda: None)()
        for module in wrapped:
            module.reshard()


def _forget_gradients(module: FSDPModule) -> None:
    """Drop what backwards have added to the gathered weights and not reduced yet; FSDP2 has no public way to."""
    state = module._get_fsdp_state()
    # One group, of another name, before torch 2.13.
    groups = getattr(state, "_fsdp_param_groups", None) or [getattr(state, "_fsdp_param_group", None)]
    for sharded in (param for group in groups if group is not None for param in group.fsdp_params):
        sharded.unsharded_accumulated_grad = None
        # The gathered copy is kept for the next pass, and is there from the first one on.
        gathered = getattr(sharded, "_unsharded_param", None)
        if gathered is not None:
            gathered.grad = None


def _models(params: Iterable[nn.Parameter]) -> list[nn.Module]:
    found: dict[int, nn.Module] = {}
    for param in params:
        weak: ReferenceType[nn.Module] | None = _MODELS.get(param)
        model = weak() if weak is not None else None
        if model is not None:
            found[id(model)] = model
    return list(found.values())


def _wrapped(model: nn.Module) -> list[FSDPModule]:
    return [m for m in model.modules() if isinstance(m, FSDPModule)]
