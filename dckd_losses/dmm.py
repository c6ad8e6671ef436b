"""The distribution mapping module (Eqs. 7-9)."""

from __future__ import annotations

from os import PathLike

import torch
from torch import Tensor, nn

from dckd_losses.checks import as_loss, check_batch, check_choice, check_number
from dckd_losses.encoder import FeatureEncoder, as_encoder


def cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Eq. 9: `-sum_k p_T,k log p_S,k`, mean over cells, in at least float32.

    Eq. 8's distributions are softmaxes over minus the squared distances to the codes, which code
    logits are but for a constant.

    Args:
        student: code logits, (B, K, h, w).
        teacher: code logits, (B, K, h, w).
        temperature: divides both.
    """
    target = _scaled(teacher, temperature).softmax(1)
    return -(target * _scaled(student, temperature).log_softmax(1)).sum(1).mean()


def released_cross_entropy(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """What DCKD's released code computes for Eq. 9: the student's softmax is applied twice.

    Nearly flat (at most 1 nat between best and worst) and least where the student puts all its
    mass on the teacher's first code, not at equality. Arguments as in `cross_entropy`.
    """
    target = _scaled(teacher, temperature).softmax(1)
    probabilities = _scaled(student, temperature).softmax(1)
    return -(target * probabilities.log_softmax(1)).sum(1).mean()


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


FORMS = {"cross_entropy": cross_entropy, "released": released_cross_entropy}


class DMMLoss(nn.Module):
    """Match the student's distribution over a VQGAN's codes to the teacher's, cell by cell.

    Both images are encoded; each 16x16 cell's latent vector has a softmax over minus the squared
    distances to the codebook's entries (Eq. 8, whose printed sign would prefer the farthest code);
    the loss is the cross-entropy from teacher to student, mean over cells (Eq. 9).

    Args:
        encoder: a name, a path or a module; see `VQGANEncoder`.
        temperature: divides the distances; 1 in the paper.
        form: "cross_entropy", or "released" for the doubled softmax of DCKD's released code, which
            is nearly flat and not least at equality.

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
        check_choice("form", form, FORMS)
        self.encoder = as_encoder(encoder)
        self.temperature = float(temperature)
        self.form = form

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of a student's output beside its teacher's."""
        check_batch(student=student, teacher=teacher)
        found = self.encoder.compare(student, teacher.detach(), codes=True)
        return as_loss(self.from_logits(found.student_logits, found.teacher_logits), student)

    def from_logits(self, student: Tensor | None, teacher: Tensor | None) -> Tensor:
        """The loss from code logits, (B, K, h, w) each."""
        assert student is not None and teacher is not None  # they were asked for
        return FORMS[self.form](student, teacher, self.temperature)
