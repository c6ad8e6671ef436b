"""The student's past self, which makes the negatives (Eq. 6)."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dckd_losses.checks import check_device, check_images, check_module, check_number
from dckd_losses.copies import at_least_float32, frozen_copy, unwrap_module

DECAY = 0.1  # paper: "attenuation rate" alpha
INTERVAL = 1000  # paper, Figure 8b: updates every 1000 steps at first
INTERVAL_GROWTH = 1000  # released code: 1000, 2000, 3000
GROWTH_EVERY = 100_000  # released code: one more for every 100,000 steps
MAX_INTERVAL = 3000  # released code's last value; it has none beyond 300,000 steps


class HistoryModel(nn.Module):
    """A frozen copy of the student that follows it at intervals (Eq. 6).

    Every so many steps its weights become `decay * history + (1 - decay) * source`, so what it
    restores is the student's recent past. Buffers are copied as they are. The source is the
    student by the paper; the released code passes the student's moving average, which makes the
    history about 1000 steps older.

    Args:
        student: the network to copy, all of lq to image, in its own dtype; wrappers
            (DistributedDataParallel, torch.compile, Accelerate) and the user's hooks are taken off
            the copy. It is not kept. Shard it (fully_shard) after this copy was made; updates then
            gather its weights, on every rank at the same step.
        decay: alpha of Eq. 6, in [0, 1): the share of its old weights that history keeps.
        interval: steps between updates at first.
        interval_growth: steps by which the interval grows ...
        growth_every: ... every so many steps.
        max_interval: the interval's upper bound, at least `interval`; None for 3000, the released
            code's last value, or for `interval` where that is more.

    Shape:
        lq (B, C, h, w) to the student's output for it, without gradient.

    State:
        `model.*`, the history's weights, and `iteration`, the optimizer steps counted, int64.

    Raises:
        ValueError: an argument is out of range, the student cannot be copied; or a source's
            parameters, buffers or device are not those of the history.

    Example:
        >>> student = torch.nn.Conv2d(3, 3, 3, padding=1)
        >>> history = HistoryModel(student, interval=2)
        >>> [history.step(student) for _ in range(4)]
        [False, True, False, True]
    """

    iteration: Tensor

    def __init__(
        self,
        student: nn.Module,
        *,
        decay: float = DECAY,
        interval: int = INTERVAL,
        interval_growth: int = INTERVAL_GROWTH,
        growth_every: int = GROWTH_EVERY,
        max_interval: int | None = None,
    ) -> None:
        super().__init__()
        check_number("decay", decay, at_least=0, below=1)
        check_number("interval", interval, at_least=1, whole=True)
        check_number("interval_growth", interval_growth, at_least=0, whole=True)
        check_number("growth_every", growth_every, at_least=1, whole=True)
        if max_interval is None:
            max_interval = max(MAX_INTERVAL, interval)
        name = f"max_interval with interval={interval}"
        check_number(name, max_interval, at_least=interval, whole=True)
        self.decay = decay
        self.interval = interval
        self.interval_growth = interval_growth
        self.growth_every = growth_every
        self.max_interval = max_interval
        self.model = frozen_copy(student)
        self.register_buffer("iteration", torch.zeros((), dtype=torch.int64))
        self.moves = 0  # how often this object was stepped or updated since it was made
        self.stepped = False  # whether by `step`, not only by `update`
        self._known: tuple[Tensor, int, int] | None = None  # spares a device read a step
        self._counter: weakref.ref[object] | None = None  # who counts for all that share this
        self._warned_not_finite = False
        super().train(False)

    @torch.no_grad()
    def forward(self, lq: Tensor) -> Tensor:
        """Restore `lq` as the student would have some steps ago; `lq` itself is not touched."""
        check_images("lq", lq, min_size=1, channels=None)
        check_device("lq", lq, "the history", self.iteration)
        dtypes = [p.dtype for p in self.model.parameters() if p.is_floating_point()]
        out = self.model(lq.to(dtypes[0] if dtypes else lq.dtype, copy=True))
        if not isinstance(out, Tensor):
            raise ValueError(
                f"the student must return one tensor, got {type(out).__name__}: make the loss from "
                "a module around it that returns the image only, and train that module"
            )
        return out

    def step(self, source: nn.Module) -> bool:
        """Count one optimizer step and update when due.

        Args:
            source: the module whose weights history follows.

        Returns:
            whether history was updated.
        """
        if not self.moves:
            self.check(source)  # not only when an update is due, a thousand steps later
        self.moves += 1
        self.stepped = True
        count = self._count() + 1
        self.iteration.fill_(count)
        self._known = (self.iteration, self.iteration._version, count)
        return self.due(count) and self.update(source)

    def counted_by(self, hook: object) -> bool:
        """Whether this hook counts the steps: of losses that share a history, the first to step."""
        if self._counter is None or self._counter() is None:
            self._counter = weakref.ref(hook)
        return self._counter() is hook

    def due(self, step: int) -> bool:
        """Whether history is updated after optimizer step `step`, counted from 1."""
        growth = self.interval_growth * ((step - 1) // self.growth_every)
        return step % min(self.interval + growth, self.max_interval) == 0

    @torch.no_grad()
    def update(self, source: nn.Module) -> bool:
        """Move the history's weights towards the source's now (Eq. 6).

        A source that is not finite is skipped, and warned of once: a NaN would never leave history.
        Reads from the device.

        Returns:
            whether history was updated.
        """
        self.moves += 1
        new = self._weights_of(source)
        parameters = dict(self.model.named_parameters())
        buffers = dict(self.model.named_buffers())
        finite = [new[name].isfinite().all() for name in parameters]
        finite += [new[name].eq(new[name]).all() for name in buffers]  # a mask may be infinite
        flags = [flag.to(self.iteration.device) for flag in finite]
        if flags and not torch.stack(flags).all():
            if not self._warned_not_finite:
                warnings.warn(
                    "the source's weights are not all finite: history keeps its own until they are",
                    stacklevel=3,
                )
            self._warned_not_finite = True
            return False
        self._warned_not_finite = False
        if parameters:
            old: list[Tensor] = list(parameters.values())
            # Eq. 6: decay * old + (1 - decay) * new
            torch._foreach_lerp_(old, [new[name] for name in parameters], 1 - self.decay)
        for name, buffer in buffers.items():
            buffer.copy_(new[name])
        return True

    @torch.no_grad()
    def reset(self, source: nn.Module) -> None:
        """Start afresh from a source: its weights, and no step counted."""
        new = self._weights_of(source)
        for name, tensor in _tensors(self.model).items():
            tensor.copy_(new[name])
        self.iteration.zero_()
        self.moves += 1
        self.stepped = False

    def unlike(self, source: nn.Module) -> bool:
        """Whether the source has other weights though no step is counted. Reads from the device."""
        if self.moves or self.iteration.is_meta or int(self.iteration) or not self.fits(source):
            return False
        theirs = dict(unwrap_module(source).named_parameters())
        mine = self.model.named_parameters()
        return any(not torch.equal(tensor.to(theirs[name]), theirs[name]) for name, tensor in mine)

    def fits(self, source: nn.Module) -> bool:
        """Whether `check` accepts a source, and none of its weights is sharded."""
        try:
            self.check(source)
        except ValueError:
            return False
        return not any(hasattr(tensor, "full_tensor") for tensor in source.parameters())

    def check(self, source: nn.Module, *, devices: bool = True) -> None:
        """Require the history's parameters and buffers, so that no update can miss a weight.

        Args:
            source: a module that history might follow.
            devices: require the same devices too.

        Raises:
            ValueError: names the first tensor that differs, and what to do.
        """
        check_module("source", source)
        mine, theirs = _tensors(self.model), _tensors(unwrap_module(source))
        odd = sorted(mine.keys() ^ theirs.keys())
        if odd:
            raise ValueError(
                f"history and source differ in {len(odd)} names, such as {odd[0]!r}: make loss and "
                "history from one module, and pass the student itself or its moving average, not "
                "a module around it"
            )
        for name, tensor in mine.items():
            other = theirs[name]
            if tensor.shape != other.shape:
                raise ValueError(
                    f"{name} is {tuple(tensor.shape)} in the history and {tuple(other.shape)} in "
                    "the source: make the loss from the student that is trained"
                )
            if devices and tensor.device != other.device:
                raise ValueError(
                    f"{name} is on {tensor.device} in the history and on {other.device} in the "
                    "source: move the loss with .to(device)"
                )

    def train(self, mode: bool = True) -> HistoryModel:
        """Stay in eval mode whatever a parent's `train()` says."""
        return super().train(False)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> HistoryModel:
        super()._apply(at_least_float32(fn), recurse)  # type: ignore[no-untyped-call]
        return self

    def __getstate__(self) -> dict[str, Any]:
        """A copy's counter is another tensor, whose writes were not watched."""
        return {
            **self.__dict__,
            "_known": None,
            "_counter": None,
            "moves": 0,
            "stepped": False,
        }

    def _weights_of(self, source: nn.Module) -> dict[str, Tensor]:
        """A source's tensors by name: whole, parameters in the history's dtypes."""
        self.check(source)
        theirs = _tensors(unwrap_module(source))
        mine = _tensors(self.model)
        return {name: _whole(theirs[name]).to(tensor.dtype) for name, tensor in mine.items()}

    def _count(self) -> int:
        if self._known is not None:
            buffer, version, count = self._known
            if buffer is self.iteration and buffer._version == version:
                return count
        return int(self.iteration)


def _whole(tensor: Tensor) -> Tensor:
    """A sharded tensor gathered (on every rank), any other as it is."""
    gather = getattr(tensor, "full_tensor", None)
    whole: Tensor = tensor if gather is None else gather()
    return whole


def _tensors(module: nn.Module) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}
