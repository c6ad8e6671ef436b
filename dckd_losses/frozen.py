"""Networks that are never trained: frozen copies, and modules that hide the network they own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import MethodType

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)


def at_least_float32(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Wrap what `nn.Module._apply` is given: follow its device, refuse dtypes below float32."""

    def apply(tensor: Tensor) -> Tensor:
        moved = fn(tensor)
        if moved.is_floating_point() and torch.finfo(moved.dtype).bits < 32:
            return tensor.to(moved.device)
        return moved

    return apply


class FrozenModule(nn.Module):
    """Holds a frozen network outside `_modules`, in eval mode for good.

    The network is in no `state_dict`, `parameters()` or `buffers()` of this module or of a parent,
    so optimizers, DistributedDataParallel and checkpoints never meet it; `.to()` and its kin
    still reach it, but casts below float32 only move it.

    Args:
        network: the module to own; its parameters are frozen in place.

    State:
        None that is saved.
    """

    network: nn.Module

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        object.__setattr__(self, "network", network.requires_grad_(False).eval())
        super().train(False)

    def train(self, mode: bool = True) -> FrozenModule:
        """Stay in eval mode whatever a parent's `train()` says."""
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenModule:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        with torch.inference_mode(False):  # whose tensors could never be saved for backward
            self.network._apply(at_least_float32(fn), recurse)  # type: ignore[no-untyped-call]
        return self


def frozen_copy(student: nn.Module) -> nn.Module:
    """A copy of a student without its wrappers, frozen and in eval mode.

    Raises:
        ValueError: it is no module, or its weights are sharded.
    """
    if not isinstance(student, nn.Module):
        raise ValueError(f"student must be a module, got {type(student).__name__}")
    student = unwrap_module(student)
    if any(hasattr(parameter, "full_tensor") for parameter in student.parameters()):
        raise ValueError(
            "this student is sharded already, and what is sharded cannot be copied: make the loss "
            "first, then call fully_shard, then make the optimizer and attach it"
        )
    model = copy.deepcopy(student)
    restore_forward(model)
    return model.requires_grad_(False).eval()


def unwrap_module(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel, AveragedModel or torch.compile."""
    inner = module.module if isinstance(module, _WRAPPERS) else getattr(module, "_orig_mod", None)
    return unwrap_module(inner) if isinstance(inner, nn.Module) else module


def restore_forward(module: nn.Module) -> None:
    """Undo Accelerate's patched `forward` on a copy: its autocast belongs to the trainer."""
    original = module.__dict__.pop("_original_forward", None)
    if original is None:
        return
    module.__dict__.pop("forward", None)
    function = getattr(original, "__func__", None)
    if function is not None and function is not type(module).forward:
        object.__setattr__(module, "forward", MethodType(function, module))
