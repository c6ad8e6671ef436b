"""What the methods share: DCKD's call, a weight, hooks that come and go; and `Logits`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from dckd_losses import DCKDLoss
from dckd_losses.balance import normalize_gradient, restore_scale
from dckd_losses.checks import (
    VALUE_RANGE,
    as_loss,
    check_device,
    check_images,
    check_match,
    check_number,
    check_values,
)
from dckd_losses.negatives.draws import Draws, process_rank

LOGITS_WEIGHT = 1.0  # released configurations of DCKD and DUKD: as much as the ground truth


class Baseline(nn.Module):
    """One weighted term of a method, called as `DCKDLoss` is.

    Images are (B, 3, H, W), lq (B, 3, h, w), nominally in [0, 1]; the loss is a float32 scalar
    (float64 for float64 images), whose gradient reaches the student only: through student_out or,
    where a subclass says so, through its features or a further pass of it.

    Args:
        weight: at least 0. At 0 nothing is computed: no network runs, nothing is drawn.
        balance: norm of the gradient at student_out, as of `DCKDLoss`. For terms that reach the
            student through it alone.

    Attributes:
        name: of the term in `last`.
        needs_target: whether the ground truth must be passed.
        last: the term of the last call, unweighted and detached, by its name; empty at weight 0.
    """

    name: str
    needs_target = False

    def __init__(self, weight: float, balance: float | None = None) -> None:
        super().__init__()
        check_number("weight", weight, at_least=0)
        check_number("balance", balance, above=0, or_none=True)
        self.weight, self.balance = weight, balance
        self.last: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []

    def forward(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, *, target: Tensor | None = None
    ) -> Tensor:
        """The weighted term of one step; target is the ground truth.

        Raises:
            ValueError: shapes or devices do not fit, or the target is missing.
        """
        self._check_tensors(student_out, teacher_out, lq, target)
        if self.weight == 0:
            self.last = {}
            return as_loss(0 * student_out.sum(), student_out)
        if target is None and self.needs_target:
            raise ValueError(f"target is missing: {self.name} needs the ground truth")
        target = target if target is None else target.detach()
        images, unit = normalize_gradient(student_out, self.balance, teacher_out)
        value = self.term(images, teacher_out.detach(), lq.detach(), target)
        self.last = {self.name: value.detach()}
        return as_loss(restore_scale(self.weight * value, unit), student_out)

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
        check_values("student_out", student_out)
        check_values("teacher_out", teacher_out, VALUE_RANGE)
        check_values("lq", lq, VALUE_RANGE)

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


class Logits(Baseline):
    """Plain distillation: `mean|S - T|`; 1 is its weight in the configurations of DCKD and DUKD."""

    name = "logits"

    def __init__(self, *, weight: float = LOGITS_WEIGHT) -> None:
        super().__init__(weight)

    def term(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor | None
    ) -> Tensor:
        """See `Baseline.term`."""
        return F.l1_loss(student_out, teacher_out)


class RandomBaseline(Baseline):
    """A term that draws numbers, none of them from a global generator.

    With the process's rank and `counter`, the number of calls (a buffer), the seed determines them.
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
    """

    def __init__(self, *terms: Baseline | DCKDLoss) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)

    def forward(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, *, target: Tensor | None = None
    ) -> Tensor:
        """The sum for one step; for the arguments see `Baseline`."""
        total = as_loss(0 * student_out.sum(), student_out)
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
