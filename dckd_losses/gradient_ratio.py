"""How hard one loss pulls at the student's output beside another."""

from __future__ import annotations

import torch
from torch import Tensor


def gradient_ratio(loss: Tensor, pixel_loss: Tensor, student_out: Tensor) -> Tensor:
    """The norm of a loss's gradient at the student's output over that of the pixel loss.

    The paper's weights (Table 7) belong to its encoder. With another, choose `dcr_weight` and
    `dmm_weight` by this number: it grows in proportion to them. It costs one backward through the
    encoder, so look at it now and then, before the step's own backward. Nothing else changes: no
    parameter gets a gradient, no number is drawn, no process is waited for.

    Args:
        loss: weighted as it is trained with, such as `dckd(student_out, teacher_out, lq)`.
        pixel_loss: what it is to be compared with, such as the L1 losses to the ground truth and
            to the teacher together.
        student_out: the tensor that both were computed from.

    Shape:
        two scalars and a tensor of any shape, to a scalar in float32 (float64 if student_out is).
        Under data parallelism each rank's own.

    Gradient:
        none.

    Raises:
        ValueError: one of the losses was not computed from student_out, or without gradient.

    Example:
        >>> student_out = torch.rand(1, 3, 16, 16, requires_grad=True)
        >>> loss, pixel_loss = 3 * student_out.mean(), student_out.mean()
        >>> round(gradient_ratio(loss, pixel_loss, student_out).item(), 3)
        3.0
    """
    above, below = (
        _norm_at(student_out, name, value)
        for name, value in (("loss", loss), ("pixel_loss", pixel_loss))
    )
    return above / below


def _norm_at(student_out: Tensor, name: str, loss: Tensor) -> Tensor:
    """Norm of a loss's gradient, in units in which a mean's elements are about 1.

    Those of a mean over a large half-precision image would round to 0.
    """
    if not (loss.requires_grad and student_out.requires_grad):
        raise ValueError(f"{name} and student_out must both be part of a graph of gradients")
    size = torch.full_like(loss, student_out.numel())
    with torch.autocast(student_out.device.type, enabled=False):
        (gradient,) = torch.autograd.grad(
            loss, student_out, size, retain_graph=True, allow_unused=True
        )
    if gradient is None:
        raise ValueError(f"{name} was not computed from this student_out")
    dtype = torch.promote_types(gradient.dtype, torch.float32)
    norm: Tensor = torch.linalg.vector_norm(gradient, dtype=dtype)
    return norm
