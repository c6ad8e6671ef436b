"""Convolutions whose weights are frozen. Fused ones do not keep their input for backward."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops import first_order

TF32_SPLIT = 2**13 + 1  # splits float32's 24 significant bits into 11, which TF32 has, and 13


def frozen_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, padding: int = 0, *, fused: bool
) -> Tensor:
    """A convolution of stride 1, (B, C, H, W) to (B, K, H', W').

    Args:
        x: (B, C, H, W).
        weight: (K, C, h, w).
        bias: (K,).
        padding: zeros on each side.
        fused: give a gradient to x only, and do not keep x for it.
    """
    if not fused:
        return F.conv2d(x, weight, bias, 1, padding)
    out: Tensor = _FrozenConv2d.apply(x, weight, bias, padding)
    return out


def halving_conv2d(x: Tensor, weight: Tensor, bias: Tensor, *, fused: bool) -> Tensor:
    """A 3x3 convolution of stride 2, padded on the right and at the bottom only.

    Args:
        x: (B, C, H, W).
        weight: (K, C, 3, 3).
        bias: (K,).
        fused: give a gradient to x only, and keep neither x nor a padded copy of it.

    Returns:
        (B, K, H // 2, W // 2).
    """
    if not fused:
        return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, 2)
    out: Tensor = _HalvingConv2d.apply(x, weight, bias)
    return out


def tf32_proof(x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Operands whose convolution is float32's even where CUDA rounds operands to TF32.

    Each operand is split into a part that TF32 represents and a rest:
    `x W = x_hi W_hi + x_lo W_hi + x_hi W_lo`, up to `x_lo W_lo`, 2^-24 of it. On other devices and
    in other precisions the operands are returned as they are.

    Args:
        x: (B, C, H, W).
        weight: (K, C, h, w).

    Returns:
        (B, 3 C, H, W) and (K, 3 C, h, w).
    """
    if x.device.type != "cuda" or x.dtype != torch.float32:
        return x, weight
    x_high, x_low = _split(x)
    high, low = _split(weight)
    return torch.cat([x_high, x_low, x_high], 1), torch.cat([high, high, low], 1)


def _split(x: Tensor) -> tuple[Tensor, Tensor]:
    """x as the sum of its leading 11 significant bits and the rest (Veltkamp 1968).

    The whole gradient goes through the first, so the rest needs none.
    """
    with torch.no_grad():
        scaled = x * TF32_SPLIT
        low = x - (scaled - (scaled - x))
    return x - low, low


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


class _HalvingConv2d(Function):
    """With a border of two on all sides, and without its first row and column: no copy of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size = x.shape[2:]
        out = F.conv2d(x, weight, bias, 2, 2)
        height, width = (size // 2 for size in ctx.size)
        return out[:, :, 1 : 1 + height, 1 : 1 + width].clone(
            memory_format=torch.preserve_format
        )

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        odd = [size % 2 for size in ctx.size]
        grad = F.pad(grad, (1, odd[1], 1, odd[0]))
        cropped = [1 - rest for rest in odd]
        return F.conv_transpose2d(grad, weight, None, 2, 2, cropped), None, None
