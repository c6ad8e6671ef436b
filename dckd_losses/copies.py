"""Frozen copies of a student: without wrappers, the user's hooks and anything shared with it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from types import FunctionType, MethodType
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


def frozen_copy(student: nn.Module) -> nn.Module:
    """A copy of a student without its wrappers and the user's hooks, frozen and in eval mode.

    Hooks that belong to the network stay: methods of its own modules, those of `torch.nn.utils`
    (weight norm, pruning), and pre-hooks that make a layer's weight or bias. Tensors that carry a
    graph, such as features that a module keeps, are copied without it.

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
    own = {id(module) for module in student.modules()}
    for path, module in student.named_modules():
        for name, value in vars(module).items():
            patched = name == "forward" and "_original_forward" in vars(module)
            if not patched and _closes_over(getattr(value, "__func__", value), own):
                raise ValueError(
                    f"the student cannot be copied because {_join(path, name)} is a function that "
                    "refers to the student's own modules, which a copy would share: make it a "
                    "method of a class"
                )
    foreign = list(_foreign_hooks(student, own))
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
    for parameter in model.parameters():
        parameter.detach_()  # for TorchScript's, whose copies have a graph, too
    return model.eval()


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


def _foreign_hooks(student: nn.Module, own: set[int]) -> Iterator[tuple[str, str, int, object]]:
    """Hooks that do not belong to the network: its path, their kind, their key and themselves."""
    for path, module in student.named_modules():
        makes = any(isinstance(vars(module).get(name), Tensor) for name in ("weight", "bias"))
        for kind, hooks in vars(module).items():
            if not kind.endswith("_hooks") or not isinstance(hooks, dict):
                continue
            if kind == "_forward_pre_hooks" and makes:  # what was a parameter is computed
                continue
            for key, hook in hooks.items():
                function = getattr(hook, "hook", hook)  # torch wraps some
                of_torch = type(_owner(function)).__module__.startswith("torch.nn.utils.")
                if not of_torch and not _refers_to(function, own):
                    yield path, kind, key, hook


def _owner(function: Any) -> Any:
    return getattr(function, "__self__", function)


def _refers_to(value: Any, own: set[int]) -> bool:
    """Whether a value is one of the student's modules, its method, or a `partial` with either."""
    if isinstance(value, partial):
        return any(_refers_to(part, own) for part in (value.func, *value.args))
    return id(_owner(value)) in own


def _closes_over(function: Any, own: set[int]) -> bool:
    """Whether a function holds one of the student's modules, which deepcopy would not copy."""
    rest, seen = [function], set()
    while rest:
        value = rest.pop()
        if isinstance(value, FunctionType) and id(value) not in seen:
            seen.add(id(value))
            rest += value.__defaults__ or ()
            for cell in value.__closure__ or ():
                with suppress(ValueError):  # an empty one
                    rest.append(cell.cell_contents)
        elif value is not function and _refers_to(value, own):
            return True
    return False


def _uncopyable(student: nn.Module) -> str:
    """The first attribute within a student that deepcopy refuses."""
    for path, module in student.named_modules():
        for name, value in vars(module).items():
            try:
                if name != "_modules" and not name.endswith("_hooks"):
                    copy.deepcopy(value)
            except Exception:
                return f"{_join(path, name)}, a {type(value).__name__}"
    return type(student).__name__


def _join(path: str, name: str) -> str:
    return f"{path}.{name}".lstrip(".")


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
