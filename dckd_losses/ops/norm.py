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
    """GroupNorm, then SiLU if wanted, in the weight's precision: (B, C, H, W) to the same.

    If fused, only x gets a gradient, and only x and its statistics are kept for it.
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
            _native(x, weight), weight, bias, *_sizes(x), groups, eps
        )
        if silu:
            F.silu(out, inplace=True)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        ctx.silu = silu
        return out.to(x.dtype)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        exact, groups = _native(x, weight), mean.shape[1]
        grad = grad.to(weight.dtype)
        if ctx.silu:
            width = len(weight) // groups
            means, scale = (t.repeat_interleave(width, 1) for t in (mean, rstd))
            scale *= weight
            shift = bias - means * scale
            normed = torch.addcmul(shift[:, :, None, None], exact, scale[:, :, None, None])
            grad = torch.ops.aten.silu_backward(grad, normed)
        dx, _, _ = torch.ops.aten.native_group_norm_backward(
            _like(grad, exact), exact, mean, rstd, weight, *_sizes(x), groups, [True, False, False]
        )
        return dx.to(x.dtype), None, None, None, None, None


def _sizes(x: Tensor) -> tuple[int, int, int]:
    """B, C and H W, as torch's native functions want them."""
    batch, channels, height, width = x.shape
    return batch, channels, height * width


def _native(x: Tensor, weight: Tensor) -> Tensor:
    """Features in the norm's precision, in a layout that torch's native functions take."""
    x = x.to(weight.dtype)
    channels_last = x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last)
    return x if channels_last else x.contiguous()


def _like(x: Tensor, other: Tensor) -> Tensor:
    layout = torch.contiguous_format if other.is_contiguous() else torch.channels_last
    return x.contiguous(memory_format=layout)
