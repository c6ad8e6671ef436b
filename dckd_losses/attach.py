"""Hooks on the optimizer and the student."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from dckd_losses.checks import check_module, check_origin, is_compiling_or_capturing
from dckd_losses.copies import unwrap_module
from dckd_losses.history import HistoryModel


class Attachable(nn.Module):
    """Base of `DCKDLoss`: it puts hooks on an optimizer and a student. A copy of it has none.

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
        self._watch_handle: RemovableHandle | None = None
        self._watch: InputWatch | None = None
        self._step_hook = StepHook(None, self._student)
        self._idle = IdleWarning()
        self._values_checked = self._origin_checked = False
        self.register_load_state_dict_post_hook(_forget)  # type: ignore[no-untyped-call]

    def attach(self, optimizer: object, source: nn.Module | None = None) -> Self:
        """Let history follow the student: count this optimizer's real steps from now on.

        Calls that gradient accumulation or a GradScaler leave out are not counted. If the loss was
        attached before, it leaves that optimizer, as when a trainer makes its optimizers anew.

        Args:
            optimizer: the student's, or what Accelerate or Lightning wrapped around it.
            source: whose weights history follows; the student where None, its moving average for
                the released code's behaviour.

        Returns:
            the loss itself.

        Raises:
            ValueError: no optimizer, one that does not train the student, or a source that is
                unlike the student.
        """
        inner = unwrap_optimizer(optimizer)
        followed = self._student() if source is None else source
        if followed is None:
            raise ValueError("this loss does not know its student any more: pass source=student")
        if source is None:
            _check_trains(inner, followed)
        if self.history is not None:
            self.history.check(followed, devices=False)  # .to(device) may still follow
        self._stop_counting()
        self._step_hook = StepHook(self.history, self._student if source is None else source)
        self._step_handle = inner.register_step_post_hook(self._step_hook)
        self._values_checked = self._origin_checked = False
        self._warn_if_history_unlike(followed)
        return self

    def watch(self, module: nn.Module) -> Self:
        """Take lq from what `module` is called with, for trainers that pass outputs only.

        Calls without gradient, such as validation's, are ignored; the loss drops the input after
        use.

        Args:
            module: the student as the trainer calls it; its first tensor argument is lq.

        Returns:
            the loss itself.

        Raises:
            ValueError: the loss watches a module already.
        """
        check_module("what is watched", module)
        if self._watch is not None:
            raise ValueError("this loss watches a module already: detach() it first")
        self._watch = InputWatch()
        self._watch_handle = module.register_forward_pre_hook(self._watch, with_kwargs=True)
        return self

    def detach(self) -> Self:
        """Remove every hook that `attach` and `watch` have left."""
        self._stop_counting()
        self._step_hook = StepHook(None, self._student)
        if self._watch_handle is not None:
            self._watch_handle.remove()
        self._watch_handle = self._watch = None
        return self

    def _stop_counting(self) -> None:
        if self._step_handle is not None:
            self._step_handle.remove()
        self._step_handle = None

    def _input(self, lq: Tensor | None) -> Tensor | None:
        """The lq that was passed, or the one that `watch` holds, which is dropped."""
        return self._watch.take() if lq is None and self._watch is not None else lq

    def _check_history(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor) -> None:
        """Tell, in training calls, of a history that is not the student's past."""
        if self.history is None or is_compiling_or_capturing() or not torch.is_grad_enabled():
            return
        student = self._student()
        made = student_out.grad_fn is not None or teacher_out.grad_fn is not None
        if made and student is not None and not self._origin_checked:
            self._origin_checked = True
            self._warn_if_history_unlike(self._step_hook.followed())
            if self.history.fits(student):
                check_origin(self.history.model, student, lq, student_out, teacher_out)
        if student_out.requires_grad:
            self._idle.note(self.history, student)

    def _warn_if_history_unlike(self, source: nn.Module | None) -> None:
        """Say that the student got its weights after the loss was made."""
        if self.history is None or source is None or self._idle.resumed:
            return
        if self.history.unlike(source):
            warnings.warn(
                "no step is counted and history has other weights than the student: if those were "
                "loaded after the loss was made, call history.reset(student); if the loss's state "
                "is yet to be loaded, all is well",
                stacklevel=3,
            )

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no hooks anywhere, so it is detached."""
        hooks = {"_step_handle": None, "_watch_handle": None, "_watch": None}
        anew = {"_idle": IdleWarning(resumed=True), "_step_hook": StepHook(None, self._student)}
        unchecked = {"_values_checked": False, "_origin_checked": False}
        return {**self.__dict__, **hooks, **anew, **unchecked}


class StepHook:
    """Counts an optimizer's real steps for a history; a post-step hook of `torch.optim`."""

    def __init__(self, history: HistoryModel | None, source: nn.Module | StudentReference) -> None:
        self.history = history
        self.source = source

    def followed(self) -> nn.Module | None:
        """The source, unless it is a student that is gone."""
        return self.source() if isinstance(self.source, StudentReference) else self.source

    def __call__(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self.history is None or _skipped(optimizer) or not self.history.counted_by(self):
            return
        source = self.followed()
        if source is None:
            raise RuntimeError("the student is gone: detach() the loss before dropping its student")
        self.history.step(source)


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


class InputWatch:
    """Keeps a copy of a module's last training input; a forward pre-hook.

    Args:
        active: an inactive one keeps nothing; copies of a watched module get such a one.
    """

    def __init__(self, active: bool = True) -> None:
        self.active = active
        self.input: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.active and torch.is_grad_enabled():
            tensors = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
            self.input = tensors[0].detach().clone() if tensors else None

    def take(self) -> Tensor:
        """Return the input and drop it.

        Raises:
            ValueError: the module has not run since the last call.
        """
        images, self.input = self.input, None
        if images is None:
            raise ValueError("the watched module has not run with gradient since the last call")
        return images

    def __reduce__(self) -> tuple[type[InputWatch], tuple[bool]]:
        return InputWatch, (False,)


class IdleWarning:
    """Warns once if a student trains while nobody steps or updates its history (any more).

    The student's steps are counted by its weights' versions, which needs no device read: calls
    between two steps count once, as with gradient accumulation. Where the student is not known (an
    unpickled loss), each call counts.

    Args:
        resumed: the last update may be long ago, so wait for the longest interval.
    """

    def __init__(self, resumed: bool = False) -> None:
        self.resumed = resumed
        self._moves = 0  # of the history when last seen
        self._version: int | None = None
        self._versions_seen = 0  # since then
        self._warned = False

    def note(self, history: HistoryModel, student: nn.Module | None) -> None:
        """Count one training call."""
        if history.moves != self._moves:
            self._moves, self._version, self._versions_seen = history.moves, None, 0
        version = None if student is None else sum(p._version for p in student.parameters())
        self._versions_seen += version is None or version != self._version
        self._version = version
        by_hand = self.resumed or history.moves
        longest = history.interval if history.stepped or not by_hand else history.max_interval
        if self._warned or self._versions_seen <= longest:
            return
        self._warned = True
        followed = "since its history last followed" if history.moves else "and its history never"
        warnings.warn(
            f"the student has been trained for {self._versions_seen - 1} steps {followed}, so "
            "negatives stay those of old weights: attach the loss, or this copy of one, to the "
            "optimizer that steps, or call history.step(student) yourself",
            stacklevel=3,
        )


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


def _skipped(optimizer: Optimizer) -> bool:
    """Whether a fused optimizer was called but left the weights alone, as GradScaler asked."""
    return bool(getattr(optimizer, "found_inf", None))


def _check_trains(optimizer: Optimizer, student: nn.Module) -> None:
    """Require that the optimizer holds a parameter of the student."""
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not any(id(p) in held for p in student.parameters()):
        raise ValueError(
            "this optimizer trains no parameter of the student that the loss was made from: attach "
            "the student's own optimizer, or pass source="
        )


def _forget(module: nn.Module, keys: object) -> None:
    """Loaded state may come from any time between two updates; check values again after it."""
    assert isinstance(module, Attachable)
    module._values_checked = module._origin_checked = False
    module._idle = IdleWarning(resumed=True)
