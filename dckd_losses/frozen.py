"""A module that owns a network which nobody outside can see, train or cast below float32."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


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
