"""GroupNorm and the SiLU after it. The fused one keeps its input and statistics for backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops import first_order, use_triton


def group_norm_silu(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool = True,
    *,
    fused: bool,
) -> Tensor:
    """GroupNorm, then SiLU, computed in the weight's precision: (B, C, H, W) to the same.

    Args:
        x: (B, C, H, W).
        weight: (C,).
        bias: (C,).
        groups: a divisor of C.
        eps: added to the variance.
        silu: False leaves SiLU out.
        fused: give a gradient to x only, and keep only x and its statistics for it.
    """
    if not fused:
        out = F.group_norm(x.to(weight.dtype), groups, weight, bias, eps)
        return (F.silu(out) if silu else out).to(x.dtype)
    if use_triton(x.device, x.dtype):
        from dckd_losses.ops.triton_norm import group_norm_silu as kernel

        return kernel(x, weight, bias, groups, eps, silu)
    fused_out: Tensor = _GroupNormSiLU.apply(x, weight, bias, groups, eps, silu)
    return fused_out


class _GroupNormSiLU(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        out, mean, rstd = torch.native_group_norm(
            x.to(weight.dtype), weight, bias, *_sizes(x), groups, eps
        )
        if silu:
            F.silu(out, inplace=True)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        ctx.groups, ctx.silu = groups, silu
        return out.to(x.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        exact, grad = x.to(weight.dtype), grad.to(weight.dtype)
        if ctx.silu:
            scale, shift = _affine(mean, rstd, weight, bias)
            normed = torch.addcmul(shift, exact, scale)
            grad = torch.ops.aten.silu_backward(grad, normed)
            del normed
        dx, _, _ = torch.ops.aten.native_group_norm_backward(
            grad, exact, mean, rstd, weight, *_sizes(x), ctx.groups, [True, False, False]
        )
        return dx.to(x.dtype), None, None, None, None, None


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """B, C and H W, as torch's native functions want them."""
    batch, channels, height, width = x.shape
    return batch, channels, height * width


def _affine(mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The norm as `scale x + shift`, (B, C, 1, 1) each, from the statistics (B, groups)."""
    width = len(weight) // mean.shape[1]
    mean, rstd = (x.repeat_interleave(width, 1) for x in (mean, rstd))
    scale = rstd * weight
    return scale[:, :, None, None], (bias - mean * scale)[:, :, None, None]
