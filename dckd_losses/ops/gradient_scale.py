"""The scale at which gradients pass through a float16 network.

A contrast's gradient at a feature is about 1e-10; float16 ends at 6e-8. So gradients grow by a
power of two at the network's results, and shrink by the same at its images. The power is found on
the device, anew in each backward, from the largest gradient that arrives; so a GradScaler's factor
on the loss does not matter inside, and is still there at the images. An image whose gradient
leaves float16's range nevertheless, as that of a flat one may, gets none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops import first_order

LARGEST = -3  # a scaled gradient's largest element is below 2**LARGEST, and at least half of it
LIMIT = 100  # of the power, so that it and its inverse are float32 numbers


class GradientScale:
    """One pass through a network in `dtype`; only float16's gradients are scaled."""

    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self.value = torch.ones(())
        self.finite = torch.tensor(True)  # what arrives in a backward

    def enter(self, images: Tensor) -> Tensor:
        """The same images; their gradient comes back unscaled."""
        if self._dtype != torch.float16:
            return images
        _refuse_to_compile()
        entered: Tensor = _Enter.apply(images, self)
        return entered

    def leave(self, results: Sequence[Tensor], max_slopes: Sequence[float]) -> list[Tensor]:
        """All results of the network, in at least float32; their gradients go in scaled.

        `max_slopes` says how large an element of a feature's gradient is at most, for a gradient
        of 1 in each result.
        """
        if self._dtype != torch.float16:
            return [x.to(torch.promote_types(x.dtype, torch.float32)) for x in results]
        _refuse_to_compile()
        left: tuple[Tensor, ...] = _Leave.apply(self, max_slopes, *results)
        return list(left)


def _refuse_to_compile() -> None:
    """Raise, or break the graph, where torch.compile traces: it would lose `value`."""
    if torch.compiler.is_compiling():
        raise RuntimeError("precision='float16' does not compile into one graph")


class _Enter(Function):
    @staticmethod
    def forward(ctx: Any, images: Tensor, scale: GradientScale) -> Tensor:
        ctx.scale = scale
        return images.view_as(images)

    @staticmethod
    @first_order
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        fits = grad.isfinite().all((1, 2, 3), keepdim=True) | ~ctx.scale.finite
        return torch.where(fits, grad / ctx.scale.value, 0), None


class _Leave(Function):
    @staticmethod
    def forward(
        ctx: Any, scale: GradientScale, max_slopes: Sequence[float], *results: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.scale, ctx.max_slopes = scale, max_slopes
        ctx.dtypes = [x.dtype for x in results]
        ctx.set_materialize_grads(False)
        return tuple(x.to(torch.float32, copy=True) for x in results)

    @staticmethod
    @first_order
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        largest = [
            slope * grad.abs().amax()
            for slope, grad in zip(ctx.max_slopes, grads, strict=True)
            if grad is not None
        ]
        most = torch.stack(largest).amax()
        scale = ctx.scale.value = _power(most)
        ctx.scale.finite = most.isfinite()
        scaled = [
            None if grad is None else (grad * scale).to(dtype)
            for grad, dtype in zip(grads, ctx.dtypes, strict=True)
        ]
        return None, None, *scaled


def _power(largest: Tensor) -> Tensor:
    """The power of two that brings a number to below 2**LARGEST; 1 for inf and nan."""
    exponent = (LARGEST - torch.frexp(largest).exponent).clamp(-LIMIT, LIMIT)
    one = torch.ones_like(largest)
    return torch.where(largest.isfinite(), torch.ldexp(one, exponent), one)
