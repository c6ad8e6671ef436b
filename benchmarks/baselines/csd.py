"""CSD: contrastive self-distillation (Wang et al., IJCAI 2021), the ancestor of DCKD's Eq. 5."""

from __future__ import annotations

from os import PathLike

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.baselines.base import Baseline
from dckd_losses import DCRLoss

WEIGHT = 200 / 255  # released command: 200 for images in [0, 255]
NUM_NEGATIVES = 10  # released command


class CSD(Baseline):
    """`sum_i w_i |S_i - T_i| / (sum_k |S_i - N_ik| + eps)`, negatives being other inputs.

    Eq. 5 of DCKD has the same form, weights and eps, with other negatives, so `DCRLoss` computes
    it. Here they are the inputs of the K images that follow in the batch (the first follows the
    last), enlarged to the output's size by bicubic interpolation: no image is its own negative.

    Departures: the paper's student is a slice of the teacher and both train together; here the
    teacher is given and fixed, so its own reconstruction loss is left out. The released code draws
    the negatives from the global generator and may pair an image with itself.

    Args:
        encoder: a name, a path or a module of five levels; the paper's are those of
            `examples.vgg_features.VGG19Features`.
        weight: 200/255, the released command's 200 for images in [0, 1]: the ratio has no unit, the
            L1 beside it has.
        num_negatives: K; 10 in the released command. In a smaller batch there are one less than it
            has images, which makes the loss larger accordingly.
        balance: see `Baseline`; None, as published.

    Shape:
        see `Baseline`; B at least 2, H and W at least 16.

    Gradient:
        to student_out, through both distances.

    Example:
        >>> csd = CSD("compact")
        >>> student_out, teacher_out = torch.rand(2, 3, 3, 32, 32)
        >>> csd(student_out, teacher_out, torch.rand(3, 3, 16, 16)).shape
        torch.Size([])
    """

    name = "csd"

    def __init__(
        self,
        encoder: str | PathLike[str] | nn.Module,
        *,
        weight: float = WEIGHT,
        num_negatives: int = NUM_NEGATIVES,
        balance: float | None = None,
    ) -> None:
        super().__init__(weight, balance)
        if num_negatives < 1:
            raise ValueError(f"num_negatives must be at least 1, got {num_negatives}")
        self.contrast = DCRLoss(encoder)
        self.num_negatives = num_negatives

    def term(
        self, student_out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor | None
    ) -> Tensor:
        """See `Baseline.term`."""
        return self.contrast(student_out, teacher_out, self.negatives(student_out, lq))

    def negatives(self, student_out: Tensor, lq: Tensor) -> Tensor:
        """Other images' inputs, (N, B, 3, H, W).

        Raises:
            ValueError: there is one image only.
        """
        if len(lq) < 2:
            raise ValueError("csd takes negatives from the batch: it needs 2 images, got 1")
        size = student_out.shape[2:]
        same = lq.shape[2:] == size
        enlarged = lq if same else F.interpolate(lq, size=size, mode="bicubic")
        count = min(self.num_negatives, len(lq) - 1)
        return torch.stack([enlarged.roll(-shift, 0) for shift in range(1, count + 1)])
