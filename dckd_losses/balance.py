"""The gradient's norm at the student's output: how it is set, and how it is read.

How large DCKD's gradient is there depends on encoder, patch and batch, so a fixed weight means
another thing in each set-up. A mean L1 distance over n values has a gradient of norm 1/sqrt(n),
whatever its value. `balance` gives DCKD's gradient a chosen fraction of that norm, or of another
pixel loss's that is passed, and keeps its direction. The paper does not have it; VQGAN's own
training balances its terms in the same spirit.

Only the gradient is scaled, in backward and on the device: the loss's value stays, and nothing is
remembered between steps. Each process, and each part of an accumulated step, scales its own. As
with L1, the norm does not fall as the student nears its teacher, until they are equal but for
rounding (see `FLOOR`); a zero gradient stays zero.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

# Where both were measured with "compact", students balanced to 0.3 were level with plain
# distillation, and those with the paper's fixed weights behind it (benchmarks/README.md).
BALANCE = 0.3
# Where student and teacher are equal but for rounding, the gradient is made of rounding errors. At
# a mean distance of 128 roundings of 1 (1.5e-5, 0.004 grey levels) float32's gradient of each term
# has a cosine of 0.99 or more with float64's; at 16 it is 0.7 to 0.98, and falls from there.
FLOOR = 128


def normalize_gradient(
    images: Tensor, fraction: float | None, teacher: Tensor, pixel_loss: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Give the images of a loss a gradient of a fixed norm.

    Args:
        images: the student's output, n values.
        fraction: of the pixel loss's norm; None leaves the gradient as it is.
        teacher: the teacher's output. Below a mean distance of `FLOOR` roundings of 1 the norm is
            in proportion to that distance, as a Huber loss's.
        pixel_loss: whose gradient at the images is measured; a mean L1's norm, 1/sqrt(n), if None.

    Returns:
        The images to compute the loss from, in at least float32 so that their gradient is not
        rounded, and a one that `restore_scale` needs (None where fraction is).
    """
    if fraction is None:
        return images, None
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    distance = (exact.detach() - teacher.detach()).abs().mean()
    share = (distance / (FLOOR * torch.finfo(exact.dtype).eps)).clamp(max=1)
    if pixel_loss is None or not images.requires_grad:
        norm = exact.numel() ** -0.5 * fraction * share
    else:
        measured = _gradient_norm("pixel_loss", pixel_loss, images) / exact.numel()
        norm = measured * fraction * share
    outputs: tuple[Tensor, Tensor] = _Balance.apply(exact, norm)
    return outputs


def restore_scale(loss: Tensor, unit: Tensor | None) -> Tensor:
    """The same loss, such that factors on it (a weight, a GradScaler's) scale the gradient."""
    return loss if unit is None else loss + (unit - unit.detach()).to(loss.dtype)


class _Balance(Function):
    """Images and a one; the one's gradient tells backward the factor that is on the loss."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, norm: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(norm)
        return images.view_as(images), images.new_ones(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor, factor: Tensor) -> tuple[Tensor, None]:
        (norm,) = ctx.saved_tensors
        with torch.autocast(grad.device.type, enabled=False):
            largest = torch.linalg.vector_norm(grad, torch.inf)
            scaled = grad / torch.where(largest > 0, largest, 1)  # small squares would be lost
            length = torch.linalg.vector_norm(scaled).clamp(min=1)  # it is 0, or at least 1
            return scaled * (norm * factor.abs() / length), None


def gradient_ratio(loss: Tensor, pixel_loss: Tensor, student_out: Tensor) -> Tensor:
    """The norm of a loss's gradient at the student's output over that of the pixel loss.

    The paper's weights (Table 7) belong to its encoder. With another, choose `balance`, or
    `dcr_weight` and `dmm_weight`, by this number: it grows in proportion to them. It costs one
    backward through the encoder, so look at it now and then, before the step's own backward.
    Nothing else changes: no parameter gets a gradient, no random number is drawn.

    Args:
        loss: weighted as it is trained with, such as `dckd(student_out, teacher_out, lq)`.
        pixel_loss: what it is compared with, such as the L1 losses to the ground truth and to the
            teacher together.
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
    norm = _gradient_norm("loss", loss, student_out)
    return norm / _gradient_norm("pixel_loss", pixel_loss, student_out)


def _gradient_norm(name: str, loss: Tensor, student_out: Tensor) -> Tensor:
    """Norm of n times a loss's gradient: a mean's elements would round to 0 in half precision."""
    if not isinstance(loss, Tensor) or not (loss.requires_grad and student_out.requires_grad):
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
