"""A loss that a trainer's optimizer and student can be bound to, and freed from again."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from dckd_losses.checks import is_recording
from dckd_losses.history import HistoryModel
from dckd_losses.hooks import InputWatch, StepHook, StudentReference
from dckd_losses.unfollowed import Unfollowed
from dckd_losses.unwrap import unwrap_module, unwrap_optimizer


class Attachable(nn.Module):
    """Base of `DCKDLoss`: the hooks it has outside itself. A copy of it has none.

    Args:
        student: the network in training, of which only a weak reference is kept.

    Attributes:
        loss_weight: 1; trainers with a registry of losses multiply each by its own.
    """

    history: HistoryModel | None
    loss_weight: float = 1.0

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        if not isinstance(student, nn.Module):
            raise ValueError(
                f"student must be a module, got {student!r}: the student comes first, then the "
                "encoder"
            )
        self._student = StudentReference(unwrap_module(student))
        self._step_handle: RemovableHandle | None = None
        self._optimizer: weakref.ref[Optimizer] | None = None
        self._watch_handle: RemovableHandle | None = None
        self._watch: InputWatch | None = None
        self._unfollowed = Unfollowed()
        self._trusted = False  # whether values were looked at since something changed
        self.register_load_state_dict_post_hook(_restart)  # type: ignore[no-untyped-call]

    def attach(self, optimizer: object, source: nn.Module | None = None) -> Self:
        """Let history follow the student: count this optimizer's real steps from now on.

        Calls that gradient accumulation or a GradScaler leave out are not counted. Attached to
        another optimizer before, as when a trainer that makes them anew is run again, the loss
        leaves that one.

        Args:
            optimizer: the student's, or what Accelerate or Lightning wrapped around it.
            source: whose weights history follows; the student where None, its moving average for
                the released code's behaviour.

        Returns:
            the loss itself.

        Raises:
            ValueError: no optimizer, one that does not train the student, a source that is unlike
                the student, or the loss is attached to this very optimizer already.
        """
        inner = unwrap_optimizer(optimizer)
        if self._optimizer is not None and self._optimizer() is inner:
            raise ValueError("this loss is attached to this optimizer already: detach() it first")
        followed = self._student() if source is None else source
        if followed is None:
            raise ValueError("this loss does not know its student any more: pass source=student")
        if source is None:
            _check_trains(inner, followed)
        if self.history is not None:
            self.history.check(followed, devices=False)  # .to(device) may still follow
        if self._step_handle is not None:
            self._step_handle.remove()  # two optimizers would count every step twice
        hook = StepHook(self.history, self._student if source is None else source)
        self._step_handle = inner.register_step_post_hook(hook)
        self._optimizer = weakref.ref(inner)
        self._trusted = False
        return self

    def watch(self, module: nn.Module) -> Self:
        """Take lq from what `module` is called with, for trainers that pass outputs only.

        Calls without gradient, such as validation's, are overlooked; the input is let go of when
        the loss has used it.

        Args:
            module: the student as the trainer calls it; its first tensor argument is lq.

        Returns:
            the loss itself.

        Raises:
            ValueError: the loss watches a module already.
        """
        if self._watch is not None:
            raise ValueError("this loss watches a module already: detach() it first")
        self._watch = InputWatch()
        self._watch_handle = module.register_forward_pre_hook(self._watch, with_kwargs=True)
        return self

    def detach(self) -> Self:
        """Remove every hook that `attach` and `watch` have left."""
        for handle in (self._step_handle, self._watch_handle):
            if handle is not None:
                handle.remove()
        self._step_handle = self._watch_handle = self._watch = self._optimizer = None
        return self

    def _notice(self, student_out: Tensor) -> None:
        """Say once that the student trains while nothing moves the history."""
        if self.history is None or is_recording():
            return
        if torch.is_grad_enabled() and student_out.requires_grad:
            self._unfollowed.notice(self.history, self._student())

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no hooks anywhere, so it is detached."""
        hooks = {"_step_handle": None, "_watch_handle": None, "_watch": None, "_optimizer": None}
        anew = {"_unfollowed": Unfollowed(resumed=True), "_trusted": False}
        return {**self.__dict__, **hooks, **anew}


def _check_trains(optimizer: Optimizer, student: nn.Module) -> None:
    """Require that the optimizer holds a parameter of the student."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in student.parameters()):
        raise ValueError(
            "this optimizer trains no parameter of the student that the loss was made from: attach "
            "the student's own optimizer, or pass source="
        )


def _restart(module: nn.Module, keys: object) -> None:
    """Loaded state may come from any time between two updates; look at values again after it."""
    assert isinstance(module, Attachable)
    module._trusted = False
    module._unfollowed = Unfollowed(resumed=True)
