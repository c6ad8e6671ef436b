"""AECR-Net's contrastive regularisation (Wu et al., CVPR 2021)."""

from __future__ import annotations

from os import PathLike

import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.base import Baseline
from dckd_losses import DCRLoss

WEIGHT = 0.1  # what the paper is said to use, unverified; the released code has 0 by default


class AECR(Baseline):
    """`sum_i w_i |S_i - Y_i| / (|S_i - X_i| + eps)`: to the ground truth, away from the input.

    No teacher takes part. Eq. 5 of DCKD has the same form, weights and eps, so `DCRLoss` computes
    it with the ground truth for its teacher and the input for its only negative.

    Departure: the paper restores at the input's size. Where the output is larger, the input's
    pixels are repeated; bicubic interpolation would give exactly what residual networks start
    from, hence a ratio over eps.

    Args:
        encoder: a name, a path or a module of five levels; the paper's are those of
            `examples.vgg_features.VGG19Features`.
        weight: 0.1, which the paper is said to use; not verified, and the released code's default
            is 0.
        balance: see `Baseline`; None, as published.

    Shape:
        see `Baseline`; H and W at least 16.

    Gradient:
        to student_out, through both distances.

    Raises:
        ValueError: the target is missing.

    Example:
        >>> import torch
        >>> student_out, teacher_out, target = torch.rand(3, 1, 3, 32, 32)
        >>> AECR("compact")(student_out, teacher_out, torch.rand(1, 3, 16, 16), target=target).shape
        torch.Size([])
    """

    name = "aecr"
    needs_target = True

    def __init__(
        self,
        encoder: str | PathLike[str] | nn.Module,
        *,
        weight: float = WEIGHT,
        balance: float | None = None,
    ) -> None:
        super().__init__(weight, balance)
        self.contrast = DCRLoss(encoder)

    def term(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor | None
    ) -> Tensor:
        """See `Baseline.term`."""
        assert target is not None
        size = student_out.shape[2:]
        negative = lq if lq.shape[2:] == size else F.interpolate(lq, size=size, mode="nearest")
        return self.contrast(student_out, target, negative[None])
