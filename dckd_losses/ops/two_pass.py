"""The fused path whose memory does not grow with the batch: it keeps the images' gradient only."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops.feature_path import Images, Objective, Terms, stream
from dckd_losses.ops.second_derivative import refuse_second_derivative

if TYPE_CHECKING:
    from dckd_losses.network import VQGANNetwork


def two_pass(
    network: VQGANNetwork, images: Images, chunk: int, objective: Objective
) -> tuple[Tensor, Terms]:
    """All scalars first, chunk by chunk; then all images pass again for the student's gradient.

    Eq. 5's ratio is of whole batches, so no part's gradient is known before all have passed, and
    nothing of a part is kept until then. A batch of one part passes once.

    Args:
        network: with fused operations.
        images: in [0, 1].
        chunk: how many images are in flight at once.
        objective: from the terms to the loss.

    Returns:
        The loss, differentiable, and the terms, detached.
    """
    terms = Terms()
    total: Tensor = _TwoPass.apply(images.student, network, images, chunk, objective, terms)
    return total, terms


class _TwoPass(Function):
    @staticmethod
    def forward(
        ctx: Any,
        student: Tensor,
        network: VQGANNetwork,
        images: Images,
        chunk: int,
        objective: Objective,
        terms: Terms,
    ) -> Tensor:
        starts = range(0, len(student), chunk)
        parts = [_leaf(images[start : start + chunk]) for start in starts]
        shares = [len(part.student) / len(student) for part in parts]
        wanted: bool = ctx.needs_input_grad[0]
        with torch.set_grad_enabled(wanted and len(parts) == 1):  # one part need not run again
            found = [stream(network, part, chunk) for part in parts]
        _gather(found, shares, terms)
        if not wanted:
            return objective(terms)
        total, slopes = _slopes(objective, terms)
        gradients: list[Tensor] = []
        for part, share in zip(parts, shares, strict=True):
            with torch.enable_grad():
                again = found[0] if len(parts) == 1 else stream(network, part, chunk)
            slope = [share * x for x in _flat(slopes)]
            gradients += torch.autograd.grad(_flat(again), part.student, slope)
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None, None, None, None


def _leaf(images: Images) -> Images:
    """The same images, the student's as a leaf of a graph of their own."""
    return replace(images, student=images.student.detach().requires_grad_())


def _gather(parts: list[Terms], shares: list[float], terms: Terms) -> None:
    """The whole batch's terms from its parts'."""
    columns = zip(*(_flat(part) for part in parts), strict=True)
    whole = [
        torch.stack([share * x.detach() for share, x in zip(shares, column, strict=True)]).sum()
        for column in columns
    ]
    filled = _like(parts[0], whole)
    terms.positive, terms.negative = filled.positive, filled.negative
    terms.divergence = filled.divergence


def _slopes(objective: Objective, terms: Terms) -> tuple[Tensor, Terms]:
    """The loss, and its derivative by each term."""
    with torch.enable_grad():
        leaves = [x.clone().requires_grad_() for x in _flat(terms)]
        total = objective(_like(terms, leaves))
        slopes = torch.autograd.grad(total, leaves)
    return total.detach(), _like(terms, list(slopes))


def _flat(terms: Terms) -> list[Tensor]:
    last = [] if terms.divergence is None else [terms.divergence]
    return [*terms.positive, *terms.negative, *last]


def _like(terms: Terms, values: list[Tensor]) -> Terms:
    """Values in the order of `_flat`, under the names that these terms have."""
    levels = len(terms.positive)
    last = None if terms.divergence is None else values[-1]
    return Terms(values[:levels], values[levels : 2 * levels], last)
