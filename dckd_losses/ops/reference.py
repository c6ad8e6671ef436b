"""The losses' arithmetic on given features, as plain as the equations.

Everything is computed in the features' own precision but at least in float32, whatever autocast
says: a half-precision distance or ratio loses the digits that the losses live on.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def frozen_conv2d(x: Tensor, weight: Tensor, bias: Tensor, padding: int = 0) -> Tensor:
    """A convolution whose weights get no gradient (or do, here)."""
    return F.conv2d(x, weight, bias, 1, padding)


def halving_conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A 3x3 convolution of stride 2, padded on the right and at the bottom only."""
    return F.conv2d(F.pad(x, (0, 1, 0, 1)), weight, bias, 2)


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = True
) -> Tensor:
    """GroupNorm, then SiLU if wanted, in the weight's precision: (B, C, H, W) to the same."""
    out = F.group_norm(x.to(weight.dtype), groups, weight, bias, eps)
    return (F.silu(out) if silu else out).to(x.dtype)


def add_group_norm_silu(
    x: Tensor, skip: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float
) -> tuple[Tensor, Tensor]:
    """A residual block's sum and the next block's first norm; `x` may be overwritten.

    Returns:
        x + skip, and `group_norm_silu` of it; (B, C, H, W) both.
    """
    x = x + skip
    return x, group_norm_silu(x, weight, bias, groups, eps)


def group_norm_silu_conv2d(
    x: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    groups: int,
    eps: float,
    weight: Tensor,
    bias: Tensor,
) -> Tensor:
    """One stage of a residual block: the norm, SiLU and a 3x3 convolution with padding 1."""
    return frozen_conv2d(group_norm_silu(x, norm_weight, norm_bias, groups, eps), weight, bias, 1)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def level_gaps(
    student: Tensor, teacher: Tensor, negatives: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Both distances of Eq. 5 at one level.

    Args:
        student: the anchor's features, (B, C, H, W).
        teacher: the positive's, (B, C, H, W).
        negatives: the negatives', N of (B, C, H, W).

    Returns:
        mean|student - teacher|, and the sum over negatives of mean|student - negative|; scalars.
    """
    student = _exact(student)
    positive = (student - teacher).abs().mean()
    negative = torch.stack([(student - other).abs().mean() for other in negatives]).sum()
    return positive, negative


def contrast(
    positive: Sequence[Tensor], negative: Sequence[Tensor], weights: Sequence[float], eps: float
) -> Tensor:
    """Eq. 5 from its distances: `sum_i weights_i positive_i / (negative_i + eps)`."""
    terms = [w * p / (n + eps) for w, p, n in zip(weights, positive, negative, strict=True)]
    return torch.stack(terms).sum()


def cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Eq. 9: `-sum_k p_T,k log p_S,k`, mean over tokens.

    Args:
        student: code logits, (B, K, h, w).
        teacher: code logits, (B, K, h, w).
        temperature: divides both.
    """
    target = (_exact(teacher) / temperature).softmax(1)
    return -(target * (_exact(student) / temperature).log_softmax(1)).sum(1).mean()


def released_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """What DCKD's released code computes for Eq. 9: the student's softmax is applied twice.

    Nearly flat (at most 1 nat between best and worst) and least where the student puts all its
    mass on the teacher's first code, not at equality. Arguments as in `cross_entropy`.
    """
    target = (_exact(teacher) / temperature).softmax(1)
    probabilities = (_exact(student) / temperature).softmax(1)
    return -(target * probabilities.log_softmax(1)).sum(1).mean()
