"""The fused path that keeps nothing but the gradient of the student's images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops.feature_path import Images, Objective, Terms, compare
from dckd_losses.ops.level_gaps import LevelGaps
from dckd_losses.ops.second_derivative import refuse_second_derivative

if TYPE_CHECKING:
    from dckd_losses.network import VQGANNetwork


def two_pass(
    network: VQGANNetwork, images: Images, chunk: int, objective: Objective
) -> tuple[Tensor, Terms]:
    """All scalars first; then the student passes again, chunk by chunk, for its gradient.

    Nothing but the gradient of the student's images is kept for backward.

    Args:
        network: with fused operations.
        images: in the network's range.
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
        images = images.map(Tensor.detach)
        parts = [
            _first_pass(network, images[start : start + chunk], chunk)
            for start in range(0, len(student), chunk)
        ]
        shares = [len(part.images.student) / len(student) for part in parts]
        _gather(parts, shares, terms)
        if not ctx.needs_input_grad[0]:
            return objective(terms)
        total, slopes = _slopes(objective, terms)
        gradients = [
            _second_pass(network, part, slopes, share)
            for part, share in zip(parts, shares, strict=True)
        ]
        ctx.save_for_backward(torch.cat(gradients))
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        (gradient,) = ctx.saved_tensors
        return gradient * grad.to(gradient.dtype), None, None, None, None, None


@dataclass
class _Part:
    """A part of the batch between the passes: codes, and what the teacher's logits were."""

    images: Images
    gaps: list[LevelGaps]
    targets: Tensor | None
    divergence: Tensor | None


def _first_pass(network: VQGANNetwork, images: Images, chunk: int) -> _Part:
    levels = list(network.levels(images.student))
    gaps, targets = compare(network, levels, images, chunk)
    for gap in gaps:
        gap.forget_student()
    if images.divergence is None or targets is None:
        return _Part(images, gaps, None, None)
    divergence = images.divergence(network.code_logits(levels[-1]), targets)
    return _Part(images, gaps, targets, divergence)


def _gather(parts: list[_Part], shares: list[float], terms: Terms) -> None:
    """The whole batch's terms from its parts'."""
    for gaps in zip(*(part.gaps for part in parts), strict=True):
        sides = [[s * x for s, x in zip(shares, side, strict=True)] for side in (
            [gap.positive for gap in gaps], [gap.negative for gap in gaps]
        )]  # fmt: skip
        terms.positive.append(torch.stack(sides[0]).sum())
        terms.negative.append(torch.stack(sides[1]).sum())
    found = [
        s * p.divergence for s, p in zip(shares, parts, strict=True) if p.divergence is not None
    ]
    terms.divergence = torch.stack(found).sum() if found else None


def _slopes(objective: Objective, terms: Terms) -> tuple[Tensor, Terms]:
    """The loss, and its derivative by each term."""
    with torch.enable_grad():
        leaves = Terms(
            [x.clone().requires_grad_() for x in terms.positive],
            [x.clone().requires_grad_() for x in terms.negative],
            None if terms.divergence is None else terms.divergence.clone().requires_grad_(),
        )
        total = objective(leaves)
        last = [] if leaves.divergence is None else [leaves.divergence]
        slopes = list(torch.autograd.grad(total, [*leaves.positive, *leaves.negative, *last]))
    levels = len(leaves.positive)
    divergence = slopes.pop() if last else None
    return total.detach(), Terms(slopes[:levels], slopes[levels:], divergence)


def _second_pass(network: VQGANNetwork, part: _Part, slopes: Terms, share: float) -> Tensor:
    """The loss's gradient by a part of the student's images."""
    with torch.enable_grad():
        student = part.images.student.detach().requires_grad_()
        levels = list(network.levels(student))
        outputs, gradients = [], []
        for level, gap, positive, negative in zip(
            levels, part.gaps, slopes.positive, slopes.negative, strict=False
        ):
            outputs.append(level)
            gradients.append(gap.gradient(share * positive, share * negative, level.dtype))
        part.gaps.clear()
        divergence = part.images.divergence
        if divergence is not None and part.targets is not None and slopes.divergence is not None:
            outputs.append(divergence(network.code_logits(levels[-1]), part.targets))
            gradients.append(share * slopes.divergence)
        return torch.autograd.grad(outputs, student, gradients)[0]
