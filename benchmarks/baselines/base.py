"""What the methods share: DCKD's call, a weight, hooks that come and go; and `Logits`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import Self

from dckd_losses import DCKDLoss
from dckd_losses.balance import normalize_gradient, restore_scale
from dckd_losses.checks import as_loss
from dckd_losses.negatives.draws import Draws, process_rank

LOGITS_WEIGHT = 1.0  # released configurations of DCKD and DUKD: as much as the ground truth


class Baseline(nn.Module):
    """One weighted term of a method, called as `DCKDLoss` is, with the ground truth beside.

    Images are (B, 3, H, W), lq (B, 3, h, w), in [0, 1]; the loss is a float32 scalar (float64 for
    float64 images), whose gradient reaches the student only: through student_out or, where a
    subclass says so, through its features or a further pass of it. Student and teacher are used,
    not owned: they are in no `state_dict`.

    Args:
        weight: At 0 nothing is computed: no network runs, nothing is drawn.
        balance: norm of the gradient at student_out, as of `DCKDLoss`. For terms that reach the
            student through it alone.

    Attributes:
        name: of the term in `last`.
        last: the term of the last call, unweighted and detached, by its name; empty at weight 0.
    """

    name: str

    def __init__(self, weight: float, balance: float | None = None, **networks: nn.Module) -> None:
        super().__init__()
        self.weight, self.balance = weight, balance
        self.last: dict[str, Tensor] = {}
        self._handles: list[RemovableHandle] = []
        for name, network in networks.items():
            object.__setattr__(self, name, network)  # not as a submodule

    def forward(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, *, target: Tensor
    ) -> Tensor:
        """The weighted term of one step."""
        if self.weight == 0:
            self.last = {}
            return as_loss(0 * student_out.sum(), student_out)
        images, unit = normalize_gradient(student_out, self.balance, teacher_out)
        value = self.term(images, teacher_out.detach(), lq.detach(), target.detach())
        self.last = {self.name: value.detach()}
        return as_loss(restore_scale(self.weight * value, unit), student_out)

    def term(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor) -> Tensor:
        """The term without its weight; all but student_out come detached."""
        raise NotImplementedError

    def attach(self, optimizer: torch.optim.Optimizer) -> Self:
        """Put the hooks that the term needs, if any; a term of weight 0 needs none."""
        self._handles = list(self.hooks(optimizer)) if self.weight else []
        return self

    def detach(self) -> Self:
        """Remove every hook that `attach` has left."""
        for handle in self._handles:
            handle.remove()
        self._handles = []
        return self

    def hooks(self, optimizer: torch.optim.Optimizer) -> Iterator[RemovableHandle]:
        """Put them."""
        yield from ()


class Logits(Baseline):
    """Plain distillation: `mean|S - T|`; 1 is its weight in the configurations of DCKD and DUKD."""

    name = "logits"

    def term(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor) -> Tensor:
        return F.l1_loss(student_out, teacher_out)


class RandomBaseline(Baseline):
    """A term that draws numbers, none of them from a global generator.

    With the process's rank and `counter`, the number of calls (a buffer), the seed determines them.
    """

    counter: Tensor

    def __init__(self, weight: float, seed: int, **networks: nn.Module) -> None:
        super().__init__(weight, **networks)
        self.seed = seed
        self.register_buffer("counter", torch.zeros((), dtype=torch.int64))

    def draws(self) -> Draws:
        """The random numbers of this call."""
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
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, *, target: Tensor
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

    def attach(self, optimizer: torch.optim.Optimizer, source: nn.Module | None = None) -> Self:
        """Attach every term; DCKD's history follows a source, the student where None."""
        for term in self.terms:
            if isinstance(term, DCKDLoss):
                term.attach(optimizer, source)
            else:
                term.attach(optimizer)
        return self

    def detach(self) -> Self:
        """Detach every term."""
        for term in self.terms:
            term.detach()
        return self

    def check(self, student_out: Tensor, teacher_out: Tensor, lq: Tensor) -> None:
        """Let DCKD look at the values."""
        for term in self.terms:
            if isinstance(term, DCKDLoss):
                term.check(student_out, teacher_out, lq)
