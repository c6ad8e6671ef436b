"""GroupNorm, and the SiLU after it, on channels_last features.

torch's own GroupNorm on CPU takes the variance of channels_last features from the mean of their
squares and so loses digits; on CUDA it has returned other layouts than it was given. Here the
variance is the mean square of centred features. Backward keeps the norm's input and statistics
only and computes the SiLU's input anew.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops.blocks import blocks, channels_last, rows
from dckd_losses.ops.second_derivative import refuse_second_derivative


class _Affine(NamedTuple):
    """What a norm does to each channel of one image: `(x - mean) rstd weight + bias`; (C,) each."""

    mean: Tensor
    rstd: Tensor
    weight: Tensor
    bias: Tensor
    groups: int
    silu: bool

    def normed(self, x: Tensor) -> Tensor:
        """Rows (n, C) to the SiLU's input."""
        return (x - self.mean).mul_(self.rstd * self.weight).add_(self.bias)

    def activated(self, x: Tensor) -> Tensor:
        """Rows (n, C) to the result."""
        normed = self.normed(x)
        return F.silu(normed, inplace=True) if self.silu else normed

    def slope(self, x: Tensor, grad: Tensor) -> Tensor:
        """The gradient by the SiLU's input from that by the result, (n, C)."""
        grad = grad.to(self.mean.dtype)
        return torch.ops.aten.silu_backward(grad, self.normed(x)) if self.silu else grad


class _GroupNormSiLU(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        x = channels_last(x)
        out = torch.empty_like(x)
        mean, rstd = _statistics(rows(x), groups, eps, weight.dtype)
        for image, image_out, m, r in zip(rows(x), rows(out), mean, rstd, strict=True):
            affine = _Affine(m, r, weight, bias, groups, silu)
            for block, block_out in blocks(image, image_out):
                block_out.copy_(affine.activated(block))
        ctx.save_for_backward(x, weight, bias, mean, rstd)
        ctx.groups, ctx.silu = groups, silu
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, weight, bias, mean, rstd = ctx.saved_tensors
        dx = torch.empty_like(x)
        images = zip(rows(x), rows(channels_last(grad)), rows(dx), mean, rstd, strict=True)
        for image, image_grad, image_dx, m, r in images:
            affine = _Affine(m, r, weight, bias, ctx.groups, ctx.silu)
            _backward(affine, image, image_grad, image_dx)
        return dx, None, None, None, None, None


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = True
) -> Tensor:
    """See `reference.group_norm_silu`; the result is channels_last."""
    out: Tensor = _GroupNormSiLU.apply(x, weight, bias, groups, eps, silu)
    return out


def _statistics(
    images: Tensor, groups: int, eps: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Each group's mean and reciprocal deviation, at each of its channels: (B, n, C) to (B, C)."""
    pixels = images.shape[1]
    mean = _group_mean(images.sum(1, dtype=dtype) / pixels, groups)
    square = torch.zeros_like(mean)
    for image, m, total in zip(images, mean, square, strict=True):
        for (block,) in blocks(image):
            total += (block - m).square_().sum(0)
    return mean, (_group_mean(square / pixels, groups) + eps).rsqrt_()


def _backward(affine: _Affine, x: Tensor, grad: Tensor, dx: Tensor) -> None:
    """One image's gradient into dx; (n, C) each."""
    total, along = torch.zeros_like(affine.mean), torch.zeros_like(affine.mean)
    for block, block_grad in blocks(x, grad):
        slope = affine.slope(block, block_grad)
        total += slope.sum(0)
        along += (block - affine.mean).mul_(slope).sum(0)
    weight, rstd, groups = affine.weight, affine.rstd, affine.groups
    shift = _group_mean(total * weight / len(x), groups) * rstd
    pull = _group_mean(along * weight / len(x), groups) * rstd.pow(3)
    for block, block_grad, block_dx in blocks(x, grad, dx):
        slope = affine.slope(block, block_grad) * (weight * rstd)
        slope.sub_((block - affine.mean).mul_(pull))
        torch.sub(slope, shift, out=block_dx)


def _group_mean(x: Tensor, groups: int) -> Tensor:
    """Means over each group's channels, at each of its channels: (..., C) to the same."""
    grouped = x.view(*x.shape[:-1], groups, -1)
    return grouped.mean(-1, keepdim=True).expand_as(grouped).reshape(x.shape)
