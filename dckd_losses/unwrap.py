"""The bare module and the bare optimizer inside what trainers wrap around them."""

from __future__ import annotations

from types import MethodType

from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

_WRAPPERS = (DataParallel, DistributedDataParallel, AveragedModel)


def unwrap_module(module: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel, AveragedModel or torch.compile."""
    inner = module.module if isinstance(module, _WRAPPERS) else getattr(module, "_orig_mod", None)
    return unwrap_module(inner) if isinstance(inner, nn.Module) else module


def unwrap_optimizer(optimizer: object) -> Optimizer:
    """The torch optimizer inside Accelerate's or Lightning's.

    Raises:
        ValueError: there is none.
    """
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer) and inner is not optimizer:
        return unwrap_optimizer(inner)
    if not isinstance(optimizer, Optimizer):
        raise ValueError(f"expected a torch optimizer, got {type(optimizer).__name__}")
    return optimizer


def restore_forward(module: nn.Module) -> None:
    """Undo Accelerate's patched `forward` on a copy: its autocast belongs to the trainer."""
    original = module.__dict__.pop("_original_forward", None)
    if original is None:
        return
    module.__dict__.pop("forward", None)
    function = getattr(original, "__func__", None)
    if function is not None and function is not type(module).forward:
        object.__setattr__(module, "forward", MethodType(function, module))
