"""What the rivals' losses share: DCKD's call, a weight, hooks that come and go; and their sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from dckd_losses import DCKDLoss
from dckd_losses.balance import check_fraction, enter, leave
from dckd_losses.checks import check_device, check_images, check_match, check_values
from dckd_losses.draws import Draws, process_rank
from dckd_losses.ops import reference


class Baseline(nn.Module):
    """One weighted term of a method, called as `DCKDLoss` is.

    Args:
        weight: of the term. At 0 nothing of it is computed: no network runs, nothing is drawn.
        balance: the norm of the term's gradient at student_out, as of `DCKDLoss`; the weight then
            only says whether there is a term. For terms that reach the student through it alone.

    Shape:
        student_out, teacher_out and target (B, 3, H, W), lq (B, 3, h, w), in [0, 1] nominally, to
        a scalar, float32 (float64 where all that is computed is).

    Gradient:
        to the student only, through student_out or, where a subclass says so, through its features
        or a further pass of it.

    Attributes:
        name: of the term in `last`.
        needs_target: whether the ground truth must be passed.
        last: the term of the last call, unweighted and detached, by its name; empty at weight 0.

    Raises:
        ValueError: a weight below 0, a balance not above 0; shapes or devices do not fit; the
            target is missing.
    """

    name: str
    needs_target = False

    def __init__(self, weight: float, balance: float | None = None) -> None:
        super().__init__()
        if not weight >= 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        self.weight = weight
        self.balance = check_fraction(balance)
        self.last: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def forward(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, *, target: Tensor | None = None
    ) -> Tensor:
        """The weighted term of one step.

        Args:
            student_out: what the student made of lq.
            teacher_out: what the teacher made of lq.
            lq: the degraded input.
            target: the ground truth.
        """
        self._check_tensors(student_out, teacher_out, lq, target)
        if self.weight == 0:
            self.last = {}
            return reference.as_loss(0 * student_out.sum(), student_out)
        if target is None and self.needs_target:
            raise ValueError(f"target is missing: {self.name} needs the ground truth")
        target = target if target is None else target.detach()
        entered, one = enter(student_out, self.balance)
        value = self.term(entered, teacher_out.detach(), lq.detach(), target)
        self.last = {self.name: value.detach()}
        return reference.as_loss(leave(self.weight * value, one), student_out)

    def term(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor | None
    ) -> Tensor:
        """The term without its weight; all but student_out come detached."""
        raise NotImplementedError

    def attach(self, optimizer: object = None) -> Self:
        """Put the hooks that the term needs, if any; a term of weight 0 needs none.

        Args:
            optimizer: the student's, for the methods that follow its steps.

        Raises:
            ValueError: it is attached already.
        """
        if self._handles:
            raise ValueError(f"{self.name} is attached already: detach() it first")
        self._handles = self._hooks(optimizer) if self.weight else []
        return self

    def detach(self) -> Self:
        """Remove every hook that `attach` has left."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return self

    def check(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor) -> None:
        """Check shapes, devices and values now; reads from the device."""
        self._check_tensors(student_out, teacher_out, lq, None)
        check_values("student_out", student_out, bounded=False)
        check_values("teacher_out", teacher_out, bounded=True)
        check_values("lq", lq, bounded=True)

    def _hooks(self, optimizer: object) -> list[RemovableHandle]:
        return []

    def _check_tensors(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor | None
    ) -> None:
        check_images("student_out", student_out, min_size=1)
        check_match("teacher_out", teacher_out, "student_out", student_out)
        check_images("lq", lq, min_size=1)
        check_device("lq", lq, "student_out", student_out)
        if len(lq) != len(student_out):
            raise ValueError(f"lq has {len(lq)} images, student_out has {len(student_out)}")
        if target is not None:
            check_match("target", target, "student_out", student_out)

    def __getstate__(self) -> dict[str, Any]:
        """A copy has no hooks anywhere, so it is detached."""
        return {**self.__dict__, "_handles": []}

    def extra_repr(self) -> str:
        return f"weight={self.weight}, balance={self.balance}"


class RandomBaseline(Baseline):
    """A term that draws numbers, none of them from a global generator.

    Args:
        weight: see `Baseline`.
        seed: with the process's rank and the number of calls it determines every random number.

    State:
        `counter`, the number of calls with a weight above 0, int64.
    """

    counter: Tensor

    def __init__(self, weight: float, seed: int) -> None:
        super().__init__(weight)
        self.seed = seed
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    def draws(self, lq: Tensor) -> Draws:
        """The random numbers of this call."""
        check_device("lq", lq, f"the counter of {self.name}", self.counter)
        draws = Draws(self.seed, process_rank(), self.counter)
        self.counter.add_(1)
        return draws


class Arm(nn.Module):
    """All that a method adds to the L1 distance to the ground truth: the sum of its terms.

    Args:
        terms: any number, none for a student that is trained from scratch.

    Shape:
        as in `Baseline`.

    State:
        that of each term, under `terms.0`, `terms.1`, ...
    """

    def __init__(self, *terms: Baseline | DCKDLoss) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, *, target: Tensor | None = None
    ) -> Tensor:
        """The sum for one step; for the arguments see `Baseline`."""
        total = reference.as_loss(0 * student_out.sum(), student_out)
        for term in self.terms:
            known = {"target": target} if isinstance(term, Baseline) else {}
            total = total + term(student_out, teacher_out, lq, **known)
        return total

    @property
    def last(self) -> dict[str, Tensor]:
        """What the terms say of the last call, together."""
        return {name: value for term in self.terms for name, value in term.last.items()}

    def attach(self, optimizer: object) -> Self:
        """Attach every term."""
        for term in self.terms:
            term.attach(optimizer)
        return self

    def detach(self) -> Self:
        """Detach every term."""
        for term in self.terms:
            term.detach()
        return self

    def check(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor) -> None:
        """Let every term look at the values."""
        for term in self.terms:
            term.check(student_out, teacher_out, lq)
