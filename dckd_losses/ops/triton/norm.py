"""The frozen encoder's GroupNorm and SiLU on channels_last features, differentiable.

Features are read as rarely as separate launches allow: forward once for the statistics and once to
normalise, backward once for the sums and once for the gradient. Between them only the norm's input
and its statistics are kept.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops.blocks import channels_last
from dckd_losses.ops.second_derivative import refuse_second_derivative
from dckd_losses.ops.triton import DTYPES
from dckd_losses.ops.triton.norm_backward import pull_back
from dckd_losses.ops.triton.norm_forward import measure, normalise


def _features(x: Tensor, weight: Tensor, groups: int) -> Tensor:
    channels = len(weight)
    if x.dim() != 4 or x.shape[1] != channels or x.dtype not in DTYPES or channels % groups:
        raise ValueError(
            f"expected features (B, {channels}, H, W) in float32, float16 or bfloat16, and groups "
            f"that divide them, got {tuple(x.shape)} in {x.dtype} and {groups} groups"
        )
    return channels_last(x)


class _GroupNormSiLU(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        x, mean, rstd = measure(_features(x, weight, groups), None, groups, eps)
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        ctx.silu = silu
        return normalise(x, mean, rstd, weight, bias, silu)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        x, mean, rstd, weight, bias = ctx.saved_tensors
        dx = pull_back(channels_last(dy), None, x, mean, rstd, weight, bias, ctx.silu)
        return dx, None, None, None, None, None


class _AddGroupNormSiLU(Function):
    @staticmethod
    def forward(
        ctx: Any,
        h: Tensor,
        skip: Tensor,
        weight: Tensor,
        bias: Tensor,
        groups: int,
        eps: float,
        silu: bool,
    ) -> tuple[Tensor, Tensor]:
        h, skip = _features(h, weight, groups), _features(skip, weight, groups)
        if h.shape != skip.shape or h.dtype != skip.dtype:
            raise ValueError(
                f"expected summands alike, got {tuple(h.shape)} in {h.dtype} and "
                f"{tuple(skip.shape)} in {skip.dtype}"
            )
        s, mean, rstd = measure(h, skip, groups, eps)
        ctx.save_for_backward(s, mean, rstd, weight, bias)
        ctx.silu = silu
        ctx.set_materialize_grads(False)
        return s, normalise(s, mean, rstd, weight, bias, silu)

    @staticmethod
    def backward(ctx: Any, ds: Tensor | None, dy: Tensor | None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative()
        s, mean, rstd, weight, bias = ctx.saved_tensors
        ds = None if ds is None else channels_last(ds)
        dx = ds
        if dy is not None:
            dx = pull_back(channels_last(dy), ds, s, mean, rstd, weight, bias, ctx.silu)
        return dx, dx, None, None, None, None, None


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = True
) -> Tensor:
    """GroupNorm, then SiLU: the twin of `reference.group_norm_silu`.

    Features of another memory format are made channels_last first.

    Args:
        x: features in float32, float16 or bfloat16.
        weight: of the norm, (C,); frozen.
        bias: of the norm, (C,); frozen.
        groups: a divisor of C.
        eps: added to the variance.
        silu: False leaves SiLU out.

    Shape:
        (B, C, H, W) to the same, channels_last and in x's dtype.

    Gradient:
        To x only, and no second one.
    """
    out: Tensor = _GroupNormSiLU.apply(x, weight, bias, groups, eps, silu)
    return out


def add_group_norm_silu(
    h: Tensor,
    skip: Tensor,
    weight: Tensor,
    bias: Tensor,
    groups: int,
    eps: float,
    silu: bool = True,
) -> tuple[Tensor, Tensor]:
    """A residual sum and the norm after it: `s = h + skip` and `group_norm_silu(s, ...)`.

    The sum is written while its statistics are gathered, and not read again for them. Its twin is
    the addition and then `reference.group_norm_silu`.

    Args:
        h: features in float32, float16 or bfloat16.
        skip: features of the same shape and dtype.
        weight: of the norm, (C,); frozen.
        bias: of the norm, (C,); frozen.
        groups: a divisor of C.
        eps: added to the variance.
        silu: False leaves SiLU out.

    Shape:
        (B, C, H, W) twice to the same twice, channels_last and in h's dtype.

    Gradient:
        To h and skip, the same for both, and no second one.
    """
    s, y = _AddGroupNormSiLU.apply(h, skip, weight, bias, groups, eps, silu)
    return s, y
