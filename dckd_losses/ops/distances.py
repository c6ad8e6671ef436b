"""Eq. 5's distances at one level of features: mean |S - T|, and sum_j mean |S - N_j|.

The fused form takes teacher and negatives one group at a time and keeps, for backward, one small
integer an element: with p = sign(S - T) and q = sum_j sign(S - N_j) it is 3 q + p.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops import first_order, use_triton

MAX_INT8_NEGATIVES = 42  # 3 * 42 + 1 = 127


def level_distances(
    student: Tensor, teacher: Tensor, negatives: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Both distances of features (B, C, H, W), by autograd alone, in at least float32."""
    student = student.to(torch.promote_types(student.dtype, torch.float32))
    positive = (student - teacher).abs().mean()
    negative = torch.stack([(student - other).abs().mean() for other in negatives]).sum()
    return positive, negative


class LevelDistances:
    """Both distances, summed up as teacher and negatives pass.

    Attributes:
        sums: of |S - T|, and of |S - N_j| over all j, so far; (2,) in at least float32.
        code: 3 q + p, of the features' shape; int8 for at most 42 negatives.
        max_slope: the largest derivative of each mean by an element of the features.
    """

    def __init__(self, student: Tensor, num_negatives: int) -> None:
        small = num_negatives <= MAX_INT8_NEGATIVES
        exact = torch.promote_types(student.dtype, torch.float32)
        self._student = student
        self.code = torch.zeros_like(student, dtype=torch.int8 if small else torch.int32)
        self.sums = student.new_zeros(2, dtype=exact)
        self.max_slope = (1 / student.numel(), num_negatives / student.numel())

    def add(self, others: Tensor, first: int, start: int) -> None:
        """Compare with some images of some sets.

        Args:
            others: features (sets, b, C, H, W).
            first: the first set's number; the teacher's is 0, a negative's is above.
            start: the first image's number in the batch.
        """
        rows = slice(start, start + others.shape[1])
        student, code = self._student[rows], self.code[rows]
        if use_triton(others.device, others.dtype):
            from dckd_losses.ops.triton_distances import accumulate

            accumulate(student, others, first, code, self.sums)
            return
        for number, other in enumerate(others, first):
            difference = student.to(self.sums.dtype) - other
            code.add_(difference.sign().to(code.dtype), alpha=3 if number else 1)
            self.sums[1 if number else 0] += difference.abs_().sum()

    def differentiable(self, student: Tensor) -> tuple[Tensor, Tensor]:
        """Both means, as functions of the student's features, which now come with their graph."""
        positive, negative = _Distances.apply(student, self.code, self.sums)
        return positive, negative


class _Distances(Function):
    @staticmethod
    def forward(ctx: Any, student: Tensor, code: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(code)
        ctx.dtype = student.dtype
        return sums[0] / code.numel(), sums[1] / code.numel()

    @staticmethod
    @first_order
    def backward(ctx: Any, d_positive: Tensor, d_negative: Tensor) -> tuple[Tensor | None, ...]:
        (code,) = ctx.saved_tensors
        grad = decode(code, d_positive / code.numel(), d_negative / code.numel(), ctx.dtype)
        return grad, None, None


def decode(code: Tensor, d_positive: Tensor, d_negative: Tensor, dtype: torch.dtype) -> Tensor:
    """The gradient of the student's features: d_positive p + d_negative q, from 3 q + p."""
    if use_triton(code.device, dtype):
        from dckd_losses.ops.triton_distances import decode as kernel

        return kernel(code, d_positive, d_negative, dtype)
    p = code.to(torch.promote_types(dtype, torch.float32))
    q = (p / 3).round_()
    p.sub_(q, alpha=3)
    return p.mul_(d_positive).add_(q.mul_(d_negative)).to(dtype)
