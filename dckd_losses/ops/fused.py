"""The frozen encoder's operations, saving for backward only what backward needs.

Twins, under the same names, of those in `reference`. Weights get no gradient, so a convolution need
not keep its input, and the SiLU after a GroupNorm is recomputed from the norm's own input. There is
no second derivative: `impl="plain"` has it.
"""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops import norm, winograd
from dckd_losses.ops.blocks import channels_last
from dckd_losses.ops.kernels import triton_takes
from dckd_losses.ops.second_derivative import refuse_second_derivative


class _FrozenConv2d(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, padding: int) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.padding = padding
        return _conv2d(x, weight, bias, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (weight,) = ctx.saved_tensors
        return _conv2d_input(grad, weight, ctx.padding), None, None, None


class _GroupNormSiLUConv2d(Function):
    """Both in one where Winograd's convolution reads its input piece by piece anyway."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, before: norm.Norm, weight: Tensor, bias: Tensor) -> Tensor:
        x = channels_last(x)
        mean, rstd = before.statistics(x)
        ctx.save_for_backward(x, mean, rstd, weight)
        ctx.norm = before
        activate = [affine.activate for affine in before.affines(mean, rstd)]
        return winograd.conv2d(x, weight, bias, activate)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, mean, rstd, weight = ctx.saved_tensors
        grad = _conv2d_input(grad, weight, padding=1)
        return ctx.norm.backward(x, grad, mean, rstd), None, None, None


class _HalvingConv2d(Function):
    """With a border of two on all sides and its first row and column left out: no copy of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size = x.shape[2:]
        out = F.conv2d(x, weight, bias, 2, 2)
        height, width = (size // 2 for size in ctx.size)
        return channels_last(out[:, :, 1 : 1 + height, 1 : 1 + width])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (weight,) = ctx.saved_tensors
        odd = [size % 2 for size in ctx.size]
        grad = F.pad(grad, (1, odd[1], 1, odd[0]))
        left_out = [1 - rest for rest in odd]
        return F.conv_transpose2d(grad, weight, None, 2, 2, left_out), None, None


def frozen_conv2d(x: Tensor, weight: Tensor, bias: Tensor, padding: int = 0) -> Tensor:
    """See `reference.frozen_conv2d`."""
    out: Tensor = _FrozenConv2d.apply(x, weight, bias, padding)
    return out


def halving_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """See `reference.halving_conv2d`."""
    out: Tensor = _HalvingConv2d.apply(x, weight, bias)
    return out


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = True
) -> Tensor:
    """See `reference.group_norm_silu`; the result is channels_last."""
    if not triton_takes(x.device, x.dtype):
        return norm.group_norm_silu(x, norm.Norm(weight, bias, groups, eps, silu))
    from dckd_losses.ops.triton.norm import group_norm_silu as kernel

    return kernel(x, weight, bias, groups, eps, silu)


def add_group_norm_silu(
    x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """See `reference.add_group_norm_silu`; the results are channels_last."""
    if not triton_takes(x.device, x.dtype):
        x += skip
        return x, group_norm_silu(x, weight, bias, groups, eps)
    from dckd_losses.ops.triton.norm import add_group_norm_silu as kernel

    return kernel(x, skip, weight, bias, groups, eps)


def group_norm_silu_conv2d(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    groups: int,
    eps: float,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """See `reference.group_norm_silu_conv2d`."""
    if not winograd.pays(x, weight):
        normed = group_norm_silu(x, norm_weight, norm_bias, groups, eps)
        return frozen_conv2d(normed, weight, bias, padding=1)
    before = norm.Norm(norm_weight, norm_bias, groups, eps)
    out: Tensor = _GroupNormSiLUConv2d.apply(x, before, weight, bias)
    return out


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, padding: int) -> Tensor:
    if padding == 1 and winograd.pays(x, weight):
        return winograd.conv2d(x, weight, bias)
    return F.conv2d(x, weight, bias, 1, padding)


def _conv2d_input(grad: Tensor, weight: Tensor, padding: int) -> Tensor:
    """A convolution's gradient by its input: one with the kernel turned round."""
    if padding == 1 and winograd.pays(grad, weight):
        return winograd.conv2d(grad, weight.transpose(0, 1).flip(2, 3), None)
    return F.conv_transpose2d(grad, weight, None, 1, padding)
