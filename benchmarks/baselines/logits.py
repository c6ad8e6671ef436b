"""Plain distillation of outputs."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from benchmarks.baselines.base import Baseline

WEIGHT = 1.0  # released configurations of DCKD and DUKD: as much as the ground truth


class Logits(Baseline):
    """`mean|S - T|`: the student's output is pulled to the teacher's.

    Args:
        weight: 1 in the released configurations of DCKD and of DUKD.

    Shape:
        see `Baseline`.

    Example:
        >>> import torch
        >>> Logits()(torch.zeros(1, 3, 8, 8), torch.ones(1, 3, 8, 8), torch.zeros(1, 3, 4, 4))
        tensor(1.)
    """

    name = "logits"

    def __init__(self, *, weight: float = WEIGHT) -> None:
        super().__init__(weight)

    def term(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor | None
    ) -> Tensor:
        """See `Baseline.term`."""
        return F.l1_loss(student_out, teacher_out)
