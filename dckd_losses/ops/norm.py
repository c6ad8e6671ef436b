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


class Affine(NamedTuple):
    """What a norm does to each channel of one image: `scale x + shift`; (C,) each."""

    mean: Tensor
    scale: Tensor
    shift: Tensor
    silu: bool

    def activate(self, x: Tensor, out: Tensor) -> None:
        """(..., C) to the result."""
        exact = out.dtype == self.scale.dtype
        normed = out if exact else torch.empty_like(x, dtype=self.scale.dtype)
        torch.addcmul(self.shift, x, self.scale, out=normed)
        if self.silu:
            F.silu(normed, inplace=True)
        if not exact:
            out.copy_(normed)

    def slope(self, x: Tensor, grad: Tensor) -> Tensor:
        """The gradient by the SiLU's input from that by the result, (..., C)."""
        grad = grad.to(self.scale.dtype)
        if not self.silu:
            return grad
        normed = torch.addcmul(self.shift, x.to(grad.dtype), self.scale)
        slope: Tensor = torch.ops.aten.silu_backward(grad, normed)
        return slope


class Norm(NamedTuple):
    """A GroupNorm's parameters, and whether SiLU follows."""

    weight: Tensor
    bias: Tensor
    groups: int
    eps: float
    silu: bool = True

    def affines(self, mean: Tensor, rstd: Tensor) -> list[Affine]:
        """For each image, from its groups' statistics at each channel, (B, C)."""
        scale = rstd * self.weight
        shift = self.bias - mean * scale
        return [Affine(*each, self.silu) for each in zip(mean, scale, shift, strict=True)]

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each group's mean and reciprocal deviation, at each of its channels: (B, C) both."""
        moments = [_moments(image, self.weight.dtype) for image in rows(x)]
        means, variances = (torch.stack(kind) for kind in zip(*moments, strict=True))
        mean = self.group_mean(means)
        variance = self.group_mean(variances + (means - mean).square())
        return mean, (variance + self.eps).rsqrt_()

    def backward(self, x: Tensor, grad: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        """The gradient by the norm's input, (B, C, H, W), from the one by its result."""
        dx = torch.empty_like(x)
        images = zip(rows(x), rows(channels_last(grad)), rows(dx), rstd, strict=True)
        for affine, parts in zip(self.affines(mean, rstd), images, strict=True):
            self._backward(affine, *parts)
        return dx

    def _backward(self, affine: Affine, x: Tensor, grad: Tensor, dx: Tensor, rstd: Tensor) -> None:
        total, along = torch.zeros_like(rstd), torch.zeros_like(rstd)
        for block, block_grad in blocks(x, grad):
            slope = affine.slope(block, block_grad)
            total += slope.sum(0)
            along += (block - affine.mean).mul_(slope).sum(0)
        shift = self.group_mean(total * self.weight / len(x)) * rstd
        pull = self.group_mean(along * self.weight / len(x)) * rstd.pow(3)
        for block, block_grad, block_dx in blocks(x, grad, dx):
            slope = affine.slope(block, block_grad) * affine.scale
            slope.sub_((block - affine.mean).mul_(pull))
            torch.sub(slope, shift, out=block_dx)

    def group_mean(self, x: Tensor) -> Tensor:
        """Means over each group's channels, at each of its channels: (..., C) to the same."""
        grouped = x.view(*x.shape[:-1], self.groups, -1)
        return grouped.mean(-1, keepdim=True).expand_as(grouped).reshape(x.shape)


def _moments(x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Mean and variance of each channel: (n, C) to (C,) both.

    On a CPU `var_mean` goes through columns ten times more slowly than what finds BatchNorm's
    statistics. Those have a mean from a plain running sum, whose error is put right here.
    """
    if x.device.type != "cpu":
        variance, mean = torch.var_mean(x.to(dtype), 0, correction=0)
        return mean, variance
    means, variances, shares = [], [], []
    for (block,) in blocks(x, larger=8):
        block = block.to(dtype)
        mean = block.sum(0).double() / len(block)
        rough, variance = torch.batch_norm_update_stats(block, None, None, 0)
        means.append(mean)
        variances.append(variance - (rough - mean).square())
        shares.append(len(block) / len(x))
    share = torch.tensor(shares, dtype=torch.float64)[:, None]
    every = torch.stack(means)
    mean = (share * every).sum(0)
    variance = (share * (torch.stack(variances) + (every - mean).square())).sum(0)
    return mean.to(dtype), variance.to(dtype)


class _GroupNormSiLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm) -> Tensor:
        x = channels_last(x)
        mean, rstd = norm.statistics(x)
        out = torch.empty_like(x)
        for affine, image, result in zip(norm.affines(mean, rstd), rows(x), rows(out), strict=True):
            for block, into in blocks(image, result):
                affine.activate(block, into)
        ctx.save_for_backward(x, mean, rstd)
        ctx.norm = norm
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, mean, rstd = ctx.saved_tensors
        return ctx.norm.backward(x, grad, mean, rstd), None


def group_norm_silu(x: Tensor, norm: Norm) -> Tensor:
    """See `reference.group_norm_silu`; the result is channels_last."""
    out: Tensor = _GroupNormSiLU.apply(x, norm)
    return out
