"""Eq. 5's distances at one level, and their gradient, by Triton.

With p = sign(S - T) and q = sum_j sign(S - N_j) all that backward needs of an element is the
integer 3 q + p (see `ops.distances`). Order in memory does not matter here as long as it is the
same for all, so features are seen as one row of numbers.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dckd_losses.ops import TRITON_DTYPES

BLOCK = 1024  # 8 elements for each of 128 threads: 16 bytes of float16
MAX_SETS = 8  # in one launch, which is unrolled over them so that no load waits for another


@triton.jit
def accumulate_kernel(
    student_ptr,  # (numel,)
    others_ptr,  # (SETS, numel): the teacher's features first where TEACHER, then negatives'
    code_ptr,  # (numel,) integers, updated
    sums_ptr,  # (2, programs) float32, written: of differences to the teacher and to negatives
    numel,
    SETS: tl.constexpr,
    TEACHER: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Differences' sums and signs over one block of elements; the student's are read once."""
    program = tl.program_id(0)
    start = program.to(tl.int64) * BLOCK
    offsets = tl.arange(0, BLOCK)
    inside = offsets < numel - start
    student = tl.load(student_ptr + start + offsets, mask=inside, other=0.0).to(tl.float32)
    code = tl.load(code_ptr + start + offsets, mask=inside, other=0)
    step = tl.zeros([BLOCK], tl.int32)
    positive = tl.zeros([BLOCK], tl.float32)
    negative = tl.zeros([BLOCK], tl.float32)
    others_ptr += start
    for number in tl.static_range(SETS):
        other = tl.load(others_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
        difference = student - other
        sign = (difference > 0).to(tl.int32) - (difference < 0).to(tl.int32)
        if TEACHER and number == 0:
            positive += tl.abs(difference)
            step += sign
        else:
            negative += tl.abs(difference)
            step += 3 * sign
        others_ptr += numel  # set by set: number * numel would not fit 32 bits
    code = (code.to(tl.int32) + step).to(code_ptr.dtype.element_ty)
    tl.store(code_ptr + start + offsets, code, mask=inside)
    tl.store(sums_ptr + program, tl.sum(positive, 0))
    tl.store(sums_ptr + tl.num_programs(0) + program, tl.sum(negative, 0))


@triton.jit
def decode_kernel(
    code_ptr,  # (numel,) integers
    grad_ptr,  # (numel,), written
    d_positive_ptr,  # scalar
    d_negative_ptr,  # scalar
    numel,
    SHIFT: tl.constexpr,  # a multiple of 3 that makes every code positive
    BLOCK: tl.constexpr,
):
    """From 3 q + p to d_positive p + d_negative q."""
    start = tl.program_id(0).to(tl.int64) * BLOCK
    offsets = tl.arange(0, BLOCK)
    inside = offsets < numel - start
    code = tl.load(code_ptr + start + offsets, mask=inside, other=0).to(tl.int32)
    rest = (code + SHIFT) % 3
    p = tl.where(rest == 2, -1, rest)
    q = (code - p) // 3  # which leaves no rest
    d_positive = tl.load(d_positive_ptr).to(tl.float32)
    d_negative = tl.load(d_negative_ptr).to(tl.float32)
    grad = d_positive * p.to(tl.float32) + d_negative * q.to(tl.float32)
    tl.store(grad_ptr + start + offsets, grad.to(grad_ptr.dtype.element_ty), mask=inside)


def accumulate(student: Tensor, others: Tensor, first: int, code: Tensor, totals: Tensor) -> None:
    """See `distances.LevelDistances.add`; code and totals are updated in place.

    `student` and `code` are (b, C, H, W), `others` (sets, b, C, H, W) of which the first is number
    `first`, `totals` (2,) float32. Code is dense; features in another order of memory are copied.
    """
    numel = code.numel()
    student, others = _ordered(student, code), _ordered(others, code)
    programs = triton.cdiv(numel, BLOCK)
    for start in range(0, len(others), MAX_SETS):
        sets = others[start : start + MAX_SETS]
        teacher = first + start == 0
        sums = student.new_empty(2, programs, dtype=torch.float32)
        with torch.cuda.device_of(code):
            accumulate_kernel[(programs,)](
                student, sets, code, sums, numel, SETS=len(sets), TEACHER=teacher, BLOCK=BLOCK
            )
        totals += sums.sum(1, dtype=torch.float64)


def decode(code: Tensor, d_positive: Tensor, d_negative: Tensor, dtype: torch.dtype) -> Tensor:
    """See `distances.decode`; the result has code's order of memory."""
    grad = torch.empty_like(code, dtype=dtype)
    numel, shift = code.numel(), 3 * 2 ** (6 if code.dtype == torch.int8 else 28)
    with torch.cuda.device_of(code):
        decode_kernel[(triton.cdiv(numel, BLOCK),)](
            code, grad, d_positive, d_negative, numel, SHIFT=shift, BLOCK=BLOCK
        )
    return grad


def _ordered(x: Tensor, code: Tensor) -> Tensor:
    """Features, or sets of them, in the code's order of memory."""
    strides = code.stride() if x.dim() == code.dim() else (code.numel(), *code.stride())
    last = sum((size - 1) * step for size, step in zip(code.shape, code.stride(), strict=True))
    if (
        x.shape[-code.dim() :] != code.shape
        or x.dtype not in TRITON_DTYPES
        or last + 1 != code.numel()
    ):
        raise ValueError(
            f"expected features {tuple(code.shape)} in float32, float16 or bfloat16 and a dense "
            f"code, got {tuple(x.shape)} in {x.dtype} and strides {code.stride()} of the code"
        )
    if all(a == b or n == 1 for a, b, n in zip(x.stride(), strides, x.shape, strict=True)):
        return x
    return torch.empty_strided(x.shape, strides, dtype=x.dtype, device=x.device).copy_(x)
