"""Dynamic contrastive regularisation (Eq. 5)."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike

import torch
from torch import Tensor, nn

from dckd_losses.checks import as_loss, check_batch, check_negatives, check_number
from dckd_losses.encoder import FeatureEncoder, as_encoder

LEVEL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)  # paper, appendix
EPS = 1e-7  # released code: at first a clean negative equals the student


def contrastive_ratio(
    positive: Sequence[Tensor], negative: Sequence[Tensor], weights: Sequence[float], eps: float
) -> Tensor:
    """Eq. 5 from its distances: `sum_i w_i |S_i - T_i| / (sum_j |S_i - N_ij| + eps)`.

    Args:
        positive: mean |S - T| at each level, scalars.
        negative: the sum over negatives of mean |S - N_j| at each level, scalars.
        weights: w, one for each level.
        eps: keeps the ratios finite.

    Raises:
        ValueError: there are not as many levels as weights.
    """
    if len(positive) != len(weights):
        raise ValueError(
            f"the encoder gives {len(positive)} levels, level_weights has {len(weights)}"
        )
    terms = [w * p / (n + eps) for w, p, n in zip(weights, positive, negative, strict=True)]
    return torch.stack(terms).sum()


class DCRLoss(nn.Module):
    """Pull the student's features to the teacher's, relative to their distance from negatives.

    Eq. 5: `sum_i w_i |S_i - T_i| / (sum_j |S_i - N_ij| + eps)` over five levels of a frozen
    encoder. Each norm is a mean over batch, channels and pixels, as in the released code. Under
    data parallelism the ratio is each rank's own.

    Args:
        encoder: a name, a path or a module; see `VQGANEncoder`.
        level_weights: w, from fine to coarse, one for each level of the encoder.
        eps: keeps the ratio finite.

    Shape:
        student and teacher (B, 3, H, W), negatives (N, B, 3, H, W), in [0, 1] nominally, H and W
        at least 16, to a scalar, float32 (float64 if the loss was moved there and student is).

    Gradient:
        to the student only, through both distances.

    State:
        none.

    Raises:
        ValueError: shapes, dtypes or devices do not fit; or the encoder has other levels.

    Example:
        >>> import torch
        >>> dcr = DCRLoss("compact")
        >>> student, teacher, negatives = torch.rand(7, 2, 3, 32, 32).split((1, 1, 5))
        >>> dcr(student[0], teacher[0], negatives).shape
        torch.Size([])
    """

    encoder: FeatureEncoder

    def __init__(
        self,
        encoder: str | PathLike[str] | nn.Module,
        *,
        level_weights: tuple[float, ...] = LEVEL_WEIGHTS,
        eps: float = EPS,
    ) -> None:
        super().__init__()
        if not isinstance(level_weights, (tuple, list)) or not level_weights:
            raise ValueError(f"level_weights must be one number a level, got {level_weights!r}")
        for weight in level_weights:
            check_number("each of level_weights", weight, at_least=0)
        check_number("eps", eps, above=0)
        self.encoder = as_encoder(encoder)
        self.level_weights = tuple(float(weight) for weight in level_weights)
        self.eps = float(eps)

    def forward(self, student: Tensor, teacher: Tensor, negatives: Tensor) -> Tensor:
        """The loss of a student's output beside its teacher's and the negatives."""
        check_batch(student=student, teacher=teacher)
        check_negatives(negatives, student)
        found = self.encoder.compare(student, teacher.detach(), negatives.detach())
        loss = contrastive_ratio(found.positive, found.negative, self.level_weights, self.eps)
        return as_loss(loss, student)
