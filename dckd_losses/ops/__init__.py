"""The frozen encoder's operations: plain and fused twins side by side, one file an operation.

A fused operation keeps for backward only what backward needs, which frozen weights make little.
Nothing here knows the rest of the package.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

Backward = Callable[..., Any]
TRITON_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def first_order(backward: Backward) -> Backward:
    """Wrap a hand-written backward: it refuses a second derivative and ignores autocast.

    A backward that autocast reaches would compute in half precision without a word.
    `torch.autograd.function.once_differentiable` raises too late: a gradient penalty would lose
    its second derivative in silence.

    Raises:
        RuntimeError: backward itself is being differentiated.
    """

    @wraps(backward)
    def run(ctx: Any, *grads: Tensor | None) -> Any:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "the fused path has no second derivative: make the encoder with impl='plain'"
            )
        device = next(grad.device.type for grad in grads if grad is not None)
        with torch.autocast(device, enabled=False):
            return backward(ctx, *grads)

    return run


def use_triton(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether Triton kernels compute norms and distances: on CUDA, where `triton` is installed."""
    return device.type == "cuda" and dtype in TRITON_DTYPES and triton_is_installed()


@cache
def triton_is_installed() -> bool:
    """Whether `triton` can be imported; torch's own packages for Linux bring it."""
    return find_spec("triton") is not None
