"""Eq. 5's distances at one level, gathered as images come by, and backward from small integers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops.blocks import blocks, channels_last, rows
from dckd_losses.ops.kernels import triton_takes
from dckd_losses.ops.second_derivative import refuse_second_derivative

MAX_INT8_NEGATIVES = 42  # 3 * 42 + 1 = 127


class LevelGaps:
    """Both distances of Eq. 5 at one level, as teacher and negatives come by.

    Nothing of theirs is kept but one small integer an element of the student's features: with
    p = sign(S - T) and q = sum_j sign(S - N_j) it is 3 q + p, which is all that backward needs.

    Args:
        student: the anchor's features, (B, C, H, W).
        negatives: how many there will be.

    Attributes:
        positive: sum of distances to the teacher's features so far.
        negative: the same to the negatives'.
        code: 3 q + p, (B, C, H, W).
        gains: how much of a derivative by either distance an element of the features gets at most.
    """

    def __init__(self, student: Tensor, negatives: int) -> None:
        self._student = channels_last(student)
        small = negatives <= MAX_INT8_NEGATIVES
        self.code = torch.zeros_like(self._student, dtype=torch.int8 if small else torch.int32)
        self.gains = (1 / student.numel(), negatives / student.numel())
        exact = torch.promote_types(student.dtype, torch.float32)
        self.positive = student.new_zeros((), dtype=exact)
        self.negative = student.new_zeros((), dtype=exact)

    def add(self, others: Tensor, first: int, start: int) -> None:
        """Compare with a group of the others.

        Args:
            others: features (sets, b, C, H, W).
            first: the first set's number; the teacher's is 0.
            start: the first image's number within the sets.
        """
        part = slice(start, start + others.shape[1])
        if triton_takes(others.device, others.dtype):
            from dckd_losses.ops.triton.gaps import accumulate

            student, code = self._student[part], self.code[part]
            accumulate(student, others, first, code, self.positive, self.negative)
            return
        student, code = (rows(x[part]).flatten(0, 1) for x in (self._student, self.code))
        for number, other in enumerate(others, first):
            step, total = (3, self.negative) if number else (1, self.positive)
            same = rows(channels_last(other)).flatten(0, 1)
            for mine, theirs, codes in blocks(student, same, code):
                gap = mine.to(total.dtype) - theirs
                codes.add_(gap.sign().to(codes.dtype), alpha=step)
                total += gap.abs_().sum(dtype=total.dtype)

    def attach(self, student: Tensor) -> tuple[Tensor, Tensor]:
        """Mean distance to the teacher, and to each negative summed; differentiable.

        Args:
            student: the features that were compared.
        """
        positive, negative = _Distances.apply(student, self.code, self.positive, self.negative)
        return positive, negative


class _Distances(Function):
    @staticmethod
    def forward(
        ctx: Any, student: Tensor, code: Tensor, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(code)
        ctx.dtype = student.dtype
        return positive / code.numel(), negative / code.numel()

    @staticmethod
    def backward(ctx: Any, d_positive: Tensor, d_negative: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (code,) = ctx.saved_tensors
        return _decode(code, d_positive, d_negative, ctx.dtype), None, None, None


def _decode(code: Tensor, d_positive: Tensor, d_negative: Tensor, dtype: torch.dtype) -> Tensor:
    """(d_positive p + d_negative q) / elements, from 3 q + p."""
    by_teacher, by_negatives = d_positive / code.numel(), d_negative / code.numel()
    if triton_takes(code.device, dtype):
        from dckd_losses.ops.triton.gaps import decode

        return decode(code, by_teacher, by_negatives, dtype)
    grad = torch.empty_like(code, dtype=dtype)
    exact = torch.promote_types(dtype, torch.float32)
    flat = (rows(x).flatten(0, 1) for x in (code, grad))
    for codes, into in blocks(*flat):
        p = codes.to(exact)
        q = (p / 3).round_()
        p.sub_(q, alpha=3)
        torch.add(p.mul_(by_teacher), q.mul_(by_negatives), out=into)
    return grad


def level_gaps(student: Tensor, teacher: Tensor, negatives: list[Tensor]) -> tuple[Tensor, Tensor]:
    """See `reference.level_gaps`."""
    gaps = LevelGaps(student.detach(), len(negatives))
    gaps.add(torch.stack([teacher, *negatives]).detach(), 0, 0)
    return gaps.attach(student)
