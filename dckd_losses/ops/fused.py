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
from dckd_losses.ops.kernels import triton_takes
from dckd_losses.ops.second_derivative import refuse_second_derivative


class _FrozenConv2d(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, stride: int, padding: int
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.size, ctx.stride, ctx.padding = x.shape[2:], stride, padding
        if (stride, padding) == (1, 1) and winograd.pays(x, weight):
            return winograd.conv2d(x, weight, bias)
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (weight,) = ctx.saved_tensors
        stride, padding = ctx.stride, ctx.padding
        if (stride, padding) == (1, 1) and winograd.pays(grad, weight):
            dx = winograd.conv2d(grad, weight.transpose(0, 1).flip(2, 3), None)
        else:  # the rows and columns that the stride left out get gradients too
            left_out = [
                wanted - (seen - 1) * stride + 2 * padding - kernel
                for wanted, seen, kernel in zip(
                    ctx.size, grad.shape[2:], weight.shape[2:], strict=True
                )
            ]
            dx = F.conv_transpose2d(grad, weight, None, stride, padding, left_out)
        return dx, None, None, None, None


def frozen_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor, stride: int = 1, padding: int = 0
) -> Tensor:
    """See `reference.frozen_conv2d`."""
    out: Tensor = _FrozenConv2d.apply(x, weight, bias, stride, padding)
    return out


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = True
) -> Tensor:
    """See `reference.group_norm_silu`; the result is channels_last."""
    if not triton_takes(x.device, x.dtype):
        return norm.group_norm_silu(x, weight, bias, groups, eps, silu)
    from dckd_losses.ops.triton.norm import group_norm_silu as kernel

    return kernel(x, weight, bias, groups, eps, silu)


def add_group_norm_silu(
    x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """See `reference.add_group_norm_silu`; the results are channels_last."""
    if not triton_takes(x.device, x.dtype):
        x += skip
        return x, norm.group_norm_silu(x, weight, bias, groups, eps)
    from dckd_losses.ops.triton.norm import add_group_norm_silu as kernel

    return kernel(x, skip, weight, bias, groups, eps)
