"""Dynamic contrastive regularisation (Eq. 5)."""

from __future__ import annotations

from os import PathLike

from torch import Tensor, nn

from dckd_losses.as_encoder import as_encoder
from dckd_losses.checks import as_loss, check_batch, check_negatives, check_number
from dckd_losses.features import FeatureEncoder
from dckd_losses.ops import reference
from dckd_losses.ops.feature_path import Images, Terms

LEVEL_WEIGHTS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1.0)  # paper, appendix
EPS = 1e-7  # released code: at first a clean negative equals the student


class DCRLoss(nn.Module):
    """Pull the student's features to the teacher's, relative to their distance from negatives.

    `sum_i w_i |S_i - T_i| / (sum_j |S_i - N_ij| + eps)` over five levels of a frozen encoder, norms
    being means over everything and so the ratio one of batch means, as in the released code
    (Eq. 5). Under data parallelism the ratio is each rank's own.

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
        self.eps = eps

    def forward(self, student: Tensor, teacher: Tensor, negatives: Tensor) -> Tensor:
        """The loss of a student's output beside its teacher's and the negatives."""
        check_batch(student=student, teacher=teacher)
        check_negatives(negatives, student)
        images = Images(student, teacher.detach(), negatives.detach())
        loss, _ = self.encoder.compare(images, self.ratio)
        return as_loss(loss, student)

    def ratio(self, terms: Terms) -> Tensor:
        """Eq. 5 from its distances.

        Raises:
            ValueError: there are not as many levels as weights.
        """
        if len(terms.positive) != len(self.level_weights):
            raise ValueError(
                f"the encoder gives {len(terms.positive)} levels, level_weights has "
                f"{len(self.level_weights)}"
            )
        return reference.contrast(terms.positive, terms.negative, self.level_weights, self.eps)
