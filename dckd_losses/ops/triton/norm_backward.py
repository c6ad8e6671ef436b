"""GroupNorm and SiLU backward: Triton kernels and their launches."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dckd_losses.ops.triton.tiles import Tiling, per_channel, place


@triton.jit
def _slope(x, dy, mean, rstd, weight, bias, SILU: tl.constexpr):
    """The normed input, and the derivative by it."""
    normed = (x - mean) * rstd
    slope = dy * weight
    if SILU:
        u = normed * weight + bias
        gate = tl.sigmoid(u)
        slope *= gate * (1.0 + u * (1.0 - gate))
    return normed, slope


@triton.jit(do_not_specialize=["pixels", "blocks"])
def slopes_kernel(
    x_ptr,  # (B, P, C)
    dy_ptr,  # (B, P, C)
    mean_ptr,  # (B, groups) float32
    rstd_ptr,  # (B, groups) float32
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    sums_ptr,  # (2, B, blocks, C) float32, written
    pixels,  # P
    blocks,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS: tl.constexpr,
    SILU: tl.constexpr,
):
    """The derivative by the normed input, and its product with that input, summed over pixels."""
    image, block, channels = place(C, BLOCK_C)
    rows = tl.arange(0, BLOCK_P)
    offsets = rows[:, None] * C + channels[None, :]
    mean, rstd, weight, bias = per_channel(
        mean_ptr, rstd_ptr, weight_ptr, bias_ptr, image, channels, C, WIDTH
    )
    plain = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    product = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for step in range(STEPS):
        first = (block * STEPS + step) * BLOCK_P
        tile = (image * pixels + first) * C
        inside = (rows < pixels - first)[:, None] & (channels < C)[None, :]
        x = tl.load(x_ptr + tile + offsets, mask=inside, other=0.0).to(tl.float32)
        dy = tl.load(dy_ptr + tile + offsets, mask=inside, other=0.0).to(tl.float32)
        normed, slope = _slope(x, dy, mean, rstd, weight, bias, SILU)
        plain += slope
        product += slope * normed
    out = (image * blocks + block) * C + channels
    second = tl.num_programs(1).to(tl.int64) * blocks * C
    tl.store(sums_ptr + out, tl.sum(plain, 0), mask=channels < C)
    tl.store(sums_ptr + second + out, tl.sum(product, 0), mask=channels < C)


@triton.jit(do_not_specialize=["pixels"])
def gradient_kernel(
    x_ptr,  # (B, P, C)
    dy_ptr,  # (B, P, C)
    ds_ptr,  # (B, P, C), read where ADD
    dx_ptr,  # (B, P, C), written
    mean_ptr,  # (B, groups) float32
    rstd_ptr,  # (B, groups) float32
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    sums_ptr,  # (2, B, groups) float32: of `slopes_kernel`, over blocks and the group's channels
    pixels,  # P
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SILU: tl.constexpr,
    ADD: tl.constexpr,
):
    """The derivative by x: what is left of the slope without its mean and its part along x."""
    image, block, channels = place(C, BLOCK_C)
    rows = tl.arange(0, BLOCK_P)
    offsets = rows[:, None] * C + channels[None, :]
    first = block * BLOCK_P
    tile = (image * pixels + first) * C
    inside = (rows < pixels - first)[:, None] & (channels < C)[None, :]
    x = tl.load(x_ptr + tile + offsets, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + tile + offsets, mask=inside, other=0.0).to(tl.float32)
    mean, rstd, weight, bias = per_channel(
        mean_ptr, rstd_ptr, weight_ptr, bias_ptr, image, channels, C, WIDTH
    )
    normed, slope = _slope(x, dy, mean, rstd, weight, bias, SILU)
    group = image * (C // WIDTH) + channels // WIDTH
    second = tl.num_programs(1) * (C // WIDTH)
    total = pixels * 1.0 * WIDTH
    plain = tl.load(sums_ptr + group, mask=channels < C, other=0.0) / total
    product = tl.load(sums_ptr + second + group, mask=channels < C, other=0.0) / total
    dx = (slope - plain[None, :] - normed * product[None, :]) * rstd
    if ADD:
        dx += tl.load(ds_ptr + tile + offsets, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx_ptr + tile + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)


def pull_back(
    dy: Tensor,
    ds: Tensor | None,
    x: Tensor,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
    bias: Tensor,
    silu: bool,
) -> Tensor:
    """From the derivative by the norm's output to the one by its input.

    Args:
        dy: the derivative by the output, channels_last (B, C, H, W).
        ds: another derivative by the input, which is added to it, channels_last; or None.
        x: the input, channels_last.
        mean: of each group, (B, groups).
        rstd: 1 / sqrt(variance + eps) of each group, (B, groups).
        weight: of the norm, (C,).
        bias: of the norm, (C,).
        silu: whether SiLU follows the norm.
    """
    batch, channels, height, width = x.shape
    tiling, pixels, groups = Tiling.of(x), height * width, mean.shape[1]
    sums = x.new_empty(2, batch, tiling.blocks, channels, dtype=torch.float32)
    dx = torch.empty_like(x)
    with torch.cuda.device_of(x):
        slopes_kernel[(tiling.blocks * tiling.across, batch)](
            x, dy, mean, rstd, weight, bias, sums, pixels, tiling.blocks,
            C=channels, WIDTH=channels // groups, BLOCK_P=tiling.rows, BLOCK_C=tiling.columns,
            STEPS=tiling.steps, SILU=silu,
        )  # fmt: skip
        sums = sums.view(2, batch, tiling.blocks, groups, -1).sum((2, 4))
        gradient_kernel[(tiling.down * tiling.across, batch)](
            x, dy, dy if ds is None else ds, dx, mean, rstd, weight, bias, sums, pixels,
            C=channels, WIDTH=channels // groups, BLOCK_P=tiling.rows, BLOCK_C=tiling.columns,
            SILU=silu, ADD=ds is not None,
        )  # fmt: skip
    return dx
