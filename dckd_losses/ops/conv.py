"""Convolutions whose weights are frozen: fused ones do not keep their input for backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops import first_order

TF32_BITS = ~((1 << 13) - 1)  # of a float32, without the 13 bits that TF32 does not have


def frozen_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, padding: int = 0, *, fused: bool
) -> Tensor:
    """A convolution of stride 1. If fused, only x gets a gradient, and x is not kept for it."""
    if not fused:
        return F.conv2d(x, weight, bias, 1, padding)
    out: Tensor = _FrozenConv2d.apply(x, weight, bias, padding)
    return out


class _FrozenConv2d(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding = padding
        return F.conv2d(x, weight, bias, 1, padding)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        return F.conv_transpose2d(grad, weight, None, 1, ctx.padding), None, None, None


def halving_conv2d(x: Tensor, weight: Tensor, bias: Tensor, *, fused: bool) -> Tensor:
    """A 3x3 convolution of stride 2, padded on the right and at the bottom only.

    If fused, only x gets a gradient, and neither x nor a padded copy of it is kept.
    """
    if fused:
        out: Tensor = _HalvingConv2d.apply(x, weight, bias)
        return out
    if x.dtype == torch.bfloat16 and x.shape[3] < 4:
        return _bordered(x, weight, bias)  # a CPU's other result is wrong where it is 1 pixel wide
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, 2)


def _bordered(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """With a border of two on all sides, and without its first row and column: no copy of x."""
    height, width = (size // 2 for size in x.shape[2:])
    return F.conv2d(x, weight, bias, 2, 2)[:, :, 1 : 1 + height, 1 : 1 + width]


class _HalvingConv2d(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size = x.shape[2:]
        return _bordered(x, weight, bias).clone(memory_format=torch.preserve_format)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        odd = [size % 2 for size in ctx.size]
        grad = F.pad(grad, (1, odd[1], 1, odd[0]))
        cropped = [1 - rest for rest in odd]
        return F.conv_transpose2d(grad, weight, None, 2, 2, cropped), None, None


def tf32_proof(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Operands whose convolution is as exact as float32's, even where CUDA rounds them to TF32.

    `x W = x_high W_high + x_low W_high + x_high W_low`, up to `x_low W_low`, 2^-24 of it, as one
    convolution of three times the channels. Other devices and precisions need none of this.
    """
    if x.device.type != "cuda" or x.dtype != torch.float32:
        return x, weight
    (x_high, x_low), (high, low) = _split(x), _split(weight)
    return torch.cat([x_high, x_low, x_high], 1), torch.cat([high, high, low], 1)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as the sum of a TF32 number and the rest; the whole gradient goes through the first."""
    with torch.no_grad():
        high = (x.view(torch.int32) & TF32_BITS).view(torch.float32)
        low = x - high
    return x - low if x.requires_grad else high, low
