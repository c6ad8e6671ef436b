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
        exact = x.to(weight.dtype)
        mean, rstd = _statistics(exact, groups, eps)
        scale, shift = _affine(mean, rstd, weight, bias)
        out = torch.addcmul(shift, exact, scale)
        if silu:
            F.silu(out, inplace=True)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        ctx.silu = silu
        return out.to(x.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        exact, grad = x.to(weight.dtype), grad.to(weight.dtype)
        if ctx.silu:
            scale, shift = _affine(mean, rstd, weight, bias)
            grad = torch.ops.aten.silu_backward(grad, torch.addcmul(shift, exact, scale))
        batch, channels, height, width = x.shape
        dx, _, _ = torch.ops.aten.native_group_norm_backward(
            grad.contiguous(memory_format=torch.channels_last),
            exact.contiguous(memory_format=torch.channels_last),
            mean, rstd, weight, batch, channels, height * width, mean.shape[1],
            [True, False, False],
        )  # fmt: skip
        return dx.to(x.dtype), None, None, None, None, None


def _statistics(x: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean and 1 / sqrt(variance + eps) of each group, (B, groups) both.

    Features are centred before they are squared. torch's own GroupNorm on a CPU takes the mean of
    squares of channels_last features and loses digits where the mean is large.
    """
    batch, channels = x.shape[:2]
    rows = x.permute(0, 2, 3, 1).flatten(1, 2)  # a view of channels_last features
    mean = rows.mean(1).view(batch, groups, -1).mean(2)
    centre = mean.repeat_interleave(channels // groups, 1)[:, None]
    variance = (rows - centre).square_().mean(1).view(batch, groups, -1).mean(2)
    return mean, (variance + eps).rsqrt_()


def _affine(mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The norm as `scale x + shift`, (B, C, 1, 1) each, from the statistics (B, groups)."""
    width = len(weight) // mean.shape[1]
    mean, rstd = (x.repeat_interleave(width, 1) for x in (mean, rstd))
    scale = rstd * weight
    return scale[:, :, None, None], (bias - mean * scale)[:, :, None, None]
