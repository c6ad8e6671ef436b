"""The distribution mapping module (Eqs. 7-9)."""

from __future__ import annotations

from os import PathLike

from torch import Tensor, nn

from dckd_losses.as_encoder import as_encoder
from dckd_losses.checks import as_loss, check_batch, check_number
from dckd_losses.features import FeatureEncoder
from dckd_losses.ops import reference
from dckd_losses.ops.feature_path import Images, Terms

FORMS = {
    "cross_entropy": reference.cross_entropy,
    "released": reference.released_cross_entropy,
}


class DMMLoss(nn.Module):
    """Match the student's distribution over a VQGAN's codes to the teacher's, cell by cell.

    Both images are encoded; each 16x16 cell's latent vector has a softmax over minus the squared
    distances to the codebook's entries (Eq. 8, whose printed sign would prefer the farthest code);
    the loss is the cross-entropy from teacher to student, mean over cells (Eq. 9).

    Args:
        encoder: a name, a path or a module; see `VQGANEncoder`.
        temperature: divides the distances; 1 in the paper.
        form: "cross_entropy", or "released" for the doubled softmax of DCKD's released code, whose
            gradient is 100 to 350 times smaller and which is not least at equality.

    Shape:
        student and teacher (B, 3, H, W), in [0, 1] nominally, H and W at least 16, to a scalar,
        float32 (float64 if the loss was moved there and student is).

    Gradient:
        to the student only.

    State:
        none.

    Raises:
        ValueError: shapes, dtypes or devices do not fit, or the encoder gives no code logits.

    Example:
        >>> import torch
        >>> dmm = DMMLoss("compact")
        >>> dmm(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)).shape
        torch.Size([])
    """

    encoder: FeatureEncoder

    def __init__(
        self,
        encoder: str | PathLike[str] | nn.Module,
        *,
        temperature: float = 1.0,
        form: str = "cross_entropy",
    ) -> None:
        super().__init__()
        check_number("temperature", temperature, above=0)
        if form not in FORMS:
            raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form!r}")
        self.encoder = as_encoder(encoder)
        self.temperature = temperature
        self.form = form

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a student's output beside its teacher's."""
        check_batch(student=student, teacher=teacher)
        images = Images(student, teacher.detach(), divergence=self.divergence)
        loss, _ = self.encoder.compare(images, _divergence)
        return as_loss(loss, student)

    def divergence(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Eq. 9 on given code logits, (B, K, h, w) each."""
        return FORMS[self.form](student, teacher, self.temperature)


def _divergence(terms: Terms) -> Tensor:
    assert terms.divergence is not None
    return terms.divergence
