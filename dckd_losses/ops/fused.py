"""The frozen encoder's operations, saving for backward only what backward needs.

Twins, under the same names, of those in `reference`. Weights get no gradient, so a convolution need
not keep its input, and the SiLU after a GroupNorm is recomputed from the norm's own input. There is
no second derivative: `impl="plain"` has it.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.nn.grad import conv2d_input

from dckd_losses.ops.second_derivative import refuse_second_derivative


class _FrozenConv2d(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.shape, ctx.stride, ctx.padding = x.shape, stride, padding
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (weight,) = ctx.saved_tensors
        dx: Tensor = conv2d_input(  # type: ignore[no-untyped-call]
            ctx.shape, weight, grad, ctx.stride, ctx.padding
        )
        return dx, None, None, None, None


def frozen_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0
) -> Tensor:
    """See `reference.frozen_conv2d`."""
    out: Tensor = _FrozenConv2d.apply(x, weight, bias, stride, padding)
    return out


class _GroupNormSiLU(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
    ) -> Tensor:
        x = _dense(x)
        batch, channels = x.shape[:2]
        pixels = x.numel() // (batch * channels)
        out, mean, rstd = torch.native_group_norm(
            x, weight, bias, batch, channels, pixels, groups, eps
        )
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.pixels = groups, pixels
        return F.silu(out, inplace=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, weight, bias, mean, rstd = ctx.saved_tensors
        batch, channels = x.shape[:2]
        per_channel = (batch, channels, 1, 1)
        spread = (rstd.repeat_interleave(channels // ctx.groups, 1) * weight).view(per_channel)
        centre = mean.repeat_interleave(channels // ctx.groups, 1).view(per_channel)
        normed = torch.addcmul(bias.view(1, -1, 1, 1) - centre * spread, x, spread.to(x.dtype))
        grad = torch.ops.aten.silu_backward(grad, normed.to(x.dtype))
        del normed
        dx, _, _ = torch.ops.aten.native_group_norm_backward(
            _dense(grad, x), x, mean, rstd, weight, batch, channels, ctx.pixels, ctx.groups,
            [True, False, False],
        )  # fmt: skip
        return dx, None, None, None, None


def group_norm_silu(x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float) -> Tensor:
    """See `reference.group_norm_silu`."""
    out: Tensor = _GroupNormSiLU.apply(x, weight, bias, groups, eps)
    return out


def _dense(x: Tensor, like: Tensor | None = None) -> Tensor:
    """Contiguous or channels_last, as it is or as another tensor is."""
    last = torch.channels_last
    wanted = x if like is None else like
    return x.contiguous(
        memory_format=last if wanted.is_contiguous(memory_format=last) else torch.contiguous_format
    )
