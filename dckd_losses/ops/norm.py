"""GroupNorm, and the SiLU after it, on channels_last features.

torch's own GroupNorm on CPU takes the variance of channels_last features from the mean of their
squares and so loses digits; on CUDA it has returned other layouts than it was given. Here features
are centred before anything else. Backward keeps the norm's input and statistics only and computes
the SiLU's input anew.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops.blocks import channels_last, pieces, rows
from dckd_losses.ops.second_derivative import refuse_second_derivative


class Affine(NamedTuple):
    """What a norm does to each channel, `scale x + shift`, (..., C), and whether SiLU follows."""

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

    def slope(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient by the SiLU's input from that by the result, and the centred features."""
        centred = x - self.mean
        grad = grad.to(centred.dtype)
        if self.silu:
            normed = torch.addcmul(self.shift, x, self.scale)
            grad = torch.ops.aten.silu_backward(grad, normed)
        return grad, centred


class Norm(NamedTuple):
    """A GroupNorm's parameters, and whether SiLU follows."""

    weight: Tensor
    bias: Tensor
    groups: int
    eps: float
    silu: bool = True

    def affines(self, mean: Tensor, rstd: Tensor) -> list[Affine]:
        """For each image, from its groups' statistics, (B, 1, C)."""
        return [self.affine(*each) for each in zip(mean[:, 0], rstd[:, 0], strict=True)]

    def affine(self, mean: Tensor, rstd: Tensor) -> Affine:
        """For one image, (C,) or (1, C), or several, (b, 1, C)."""
        scale = rstd * self.weight
        return Affine(mean, scale, self.bias - mean * scale, self.silu)

    def statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each group's mean and reciprocal deviation, at each of its channels: (B, 1, C) both."""
        found = [(images, *_moments(*parts)) for images, parts in pieces(rows(x))]
        shape, pixels = (len(x), 1, x.shape[1]), x[0, 0].numel()
        mean, variance = (self.weight.new_zeros(shape) for _ in range(2))
        for images, size, means, _ in found:
            mean[images] += means * (size / pixels)
        mean = self.group_mean(mean)
        for images, size, means, variances in found:
            variance[images] += (variances + (means - mean[images]).square_()) * (size / pixels)
        variance = self.group_mean(variance)
        return mean, (variance + self.eps).rsqrt_()

    def backward(self, x: Tensor, grad: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
        """The gradient by the norm's input, (B, C, H, W), from the one by its result."""
        dx = torch.empty_like(x)
        features = rows(x), rows(channels_last(grad))
        total, along = torch.zeros_like(rstd), torch.zeros_like(rstd)
        for images, (piece, piece_grad) in pieces(*features):
            affine = self.affine(mean[images], rstd[images])
            slope, centred = affine.slope(piece, piece_grad)
            total[images] += slope.sum(1, keepdim=True)
            along[images] += centred.mul_(slope).sum(1, keepdim=True)
        pixels = features[0].shape[1]
        shift = self.group_mean(total * self.weight / pixels) * rstd
        pull = self.group_mean(along * self.weight / pixels) * rstd.pow(3)
        for images, (piece, piece_grad, into) in pieces(*features, rows(dx)):
            affine = self.affine(mean[images], rstd[images])
            slope, centred = affine.slope(piece, piece_grad)
            slope = (slope * affine.scale).sub_(centred.mul_(pull[images]))
            torch.sub(slope, shift[images], out=into)
        return dx

    def group_mean(self, x: Tensor) -> Tensor:
        """Means over each group's channels, at each of its channels: (..., C) to the same."""
        grouped = x.view(*x.shape[:-1], self.groups, -1)
        return grouped.mean(-1, keepdim=True).expand_as(grouped).reshape(x.shape)


def _moments(x: Tensor) -> tuple[int, Tensor, Tensor]:
    """How many pixels a piece (b, m, C) has, and each channel's mean and variance, (b, 1, C)."""
    mean = x.mean(1, keepdim=True, dtype=torch.promote_types(x.dtype, torch.float32))
    return x.shape[1], mean, (x - mean).square_().mean(1, keepdim=True)


class _GroupNormSiLU(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: Norm) -> Tensor:
        x = channels_last(x)
        mean, rstd = norm.statistics(x)
        out = torch.empty_like(x)
        for images, (piece, into) in pieces(rows(x), rows(out)):
            norm.affine(mean[images], rstd[images]).activate(piece, into)
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
