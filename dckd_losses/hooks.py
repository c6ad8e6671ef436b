"""What a DCKDLoss leaves at a trainer's optimizer and student, and takes away again."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from dckd_losses.history import HistoryModel


class StudentReference:
    """A weak reference to a module that copies as it is and pickles as an empty one."""

    def __init__(self, module: nn.Module | None) -> None:
        self._reference = weakref.ref(module) if module is not None else None

    def __call__(self) -> nn.Module | None:
        return self._reference() if self._reference is not None else None

    def __deepcopy__(self, memo: dict[int, Any]) -> StudentReference:
        student = self()
        return StudentReference(memo.get(id(student), student))  # its copy, if it was copied along

    def __reduce__(self) -> tuple[type[StudentReference], tuple[None]]:
        return StudentReference, (None,)


class StepHook:
    """Counts an optimizer's real steps for a history; a post-step hook of `torch.optim`."""

    def __init__(self, history: HistoryModel | None, source: nn.Module | StudentReference) -> None:
        self.history = history
        self.source = source
        self._first = True

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.history is None or _skipped(optimizer):
            return
        source = self.source() if isinstance(self.source, StudentReference) else self.source
        if source is None:
            raise RuntimeError("the student is gone: detach() the loss before dropping its student")
        if self._first:
            self.history.check(source)  # not only when an update is due, a thousand steps later
            self._first = False
        self.history.step(source)


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer was called but left the weights alone, as GradScaler asked."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


class InputWatch:
    """Keeps a copy of a module's last training input; a forward pre-hook.

    Args:
        active: an inactive one keeps nothing; copies of a watched module get such a one.
    """

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self._input: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.active and torch.is_grad_enabled():
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            self._input = tensors[0].detach().clone() if tensors else None

    @property
    def input(self) -> Tensor | None:
        """The input where the module has run since it was last taken; it is kept."""
        return self._input

    def take(self, batch: int) -> Tensor:
        """The input, which is let go of.

        Args:
            batch: how many images it must have.

        Raises:
            ValueError: the module has not run since the last call, or on another batch.
        """
        images, self._input = self._input, None
        if images is None:
            raise ValueError("the watched module has not run with gradient since the last call")
        if len(images) != batch:
            raise ValueError(
                f"the watched module last ran on {len(images)} images, its output has {batch}"
            )
        return images

    def __reduce__(self) -> tuple[type[InputWatch], tuple[bool]]:
        return InputWatch, (False,)
