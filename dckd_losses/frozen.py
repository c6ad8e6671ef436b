"""Networks that are never trained: frozen copies, and modules whose network is in no state_dict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel
from torch.overrides import TorchFunctionMode

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
    """A copy of a student without its wrappers and the user's hooks, frozen and in eval mode.

    Hooks that belong to the network stay: those of `torch.nn.utils` (weight norm, pruning) and
    methods of its own modules. Tensors that carry a graph, such as features that a module keeps,
    are copied without it.

    Raises:
        ValueError: it is no module, its weights are sharded, or something in it cannot be copied.
    """
    if not isinstance(student, nn.Module):
        raise ValueError(f"student must be a module, got {type(student).__name__}")
    student = unwrap_module(student)
    if any(hasattr(parameter, "full_tensor") for parameter in student.parameters()):
        raise ValueError(
            "this student is sharded already, and what is sharded cannot be copied: make the loss "
            "first, then call fully_shard, then make the optimizer and attach it"
        )
    foreign = list(_foreign_hooks(student))
    memo: dict[int, Any] = {id(hook): hook for _, _, _, hook in foreign}  # not to be copied
    with _CopyWithoutGraph():
        try:
            model = copy.deepcopy(student, memo)
        except Exception as error:
            raise ValueError(
                f"the student cannot be copied because of {_uncopyable(student)} ({error}): leave "
                "it out in the class's __getstate__, or pass a history made from a student "
                "without it"
            ) from error
    modules = dict(model.named_modules(remove_duplicate=False))
    for path, kind, key, _ in foreign:
        getattr(modules[path], kind).pop(key, None)
    restore_forward(model)
    return model.requires_grad_(False).eval()


class _CopyWithoutGraph(TorchFunctionMode):
    """Lets deepcopy detach tensors that were computed; torch itself refuses to copy them."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _foreign_hooks(student: nn.Module) -> Iterator[tuple[str, str, int, object]]:
    """Hooks that do not belong to the network: its path, their kind, their key and themselves."""
    own = {id(module) for module in student.modules()}
    for path, module in student.named_modules():
        for kind, hooks in vars(module).items():
            if not kind.endswith("_hooks") or not isinstance(hooks, dict):
                continue
            for key, hook in hooks.items():
                function = getattr(hook, "hook", hook)  # torch wraps some
                owner = getattr(function, "__self__", function)
                of_torch = type(owner).__module__.startswith("torch.nn.utils.")
                if id(owner) not in own and not of_torch:
                    yield path, kind, key, hook


def _uncopyable(student: nn.Module) -> str:
    """The first attribute within a student that deepcopy refuses."""
    for path, module in student.named_modules():
        for name, value in vars(module).items():
            try:
                if name != "_modules" and not name.endswith("_hooks"):
                    copy.deepcopy(value)
            except Exception:
                return f"{path}.{name}".lstrip(".") + f", a {type(value).__name__}"
    return type(student).__name__


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
