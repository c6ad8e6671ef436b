"""A weight that follows from the gradient: the balanced weight, which the paper does not have.

How strongly DCKD pulls at the student's output depends on encoder, patch and batch, so a weight
tuned for one set-up means another thing in the next. A mean L1 distance over n values has a
gradient of norm 1/sqrt(n) there, whatever its value. Here DCKD's gradient gets a chosen fraction
of that norm, and keeps its direction. VQGAN's own training balances its terms in the same spirit.

The loss's value stays what it was: only its gradient is scaled, in backward, on the device, and
nothing is remembered from step to step. Each process, and each part of an accumulated step, scales
its own. As of L1, the norm does not fall as the student nears its teacher; where the gradient is
exactly zero, it stays so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dckd_losses.checks import check_number


def check_fraction(fraction: float | None) -> float | None:
    """A fraction as it is.

    Raises:
        ValueError: it is not a finite number above 0.
    """
    if fraction is not None:
        expected = "finite and above 0, or None"
        check_number("balance", fraction, expected, lambda x: 0 < x < float("inf"))
    return fraction


def enter(images: Tensor, fraction: float | None) -> tuple[Tensor, Tensor | None]:
    """The images that the loss is to be computed from, and a one that has to `leave` with it.

    Args:
        images: the student's output, n values.
        fraction: of 1/sqrt(n), the norm that the gradient by `images` is to have where the loss's
            own is 1; None for the gradient as it is.

    Returns:
        The images, in at least float32 so that their gradient arrives unrounded; and the one, or
        None.
    """
    if fraction is None:
        return images, None
    exact = images.to(torch.promote_types(images.dtype, torch.float32))
    entered: tuple[Tensor, Tensor] = _Balance.apply(exact, fraction / exact.numel() ** 0.5)
    return entered


def leave(loss: Tensor, one: Tensor | None) -> Tensor:
    """The same loss, whose own gradient (a GradScaler's factor, a weight) backward gets to know."""
    return loss if one is None else loss + (one - one.detach()).to(loss.dtype)


class _Balance(Function):
    """Images and a one; backward gets the images' gradient, and through the one the loss's."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, norm: float) -> tuple[Tensor, Tensor]:
        ctx.norm = norm
        return images.view_as(images), images.new_ones(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor, factor: Tensor) -> tuple[Tensor, None]:
        largest = grad.abs().amax()
        unit = grad / torch.where(largest > 0, largest, 1)  # small squares would be lost
        length = torch.linalg.vector_norm(unit)
        return unit * (ctx.norm * factor.abs() / torch.where(length > 0, length, 1)), None
