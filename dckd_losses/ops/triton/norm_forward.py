"""GroupNorm and SiLU forward: Triton kernels and their launches."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from dckd_losses.ops.triton.tiles import Tiling, per_channel, place


@triton.jit(do_not_specialize=["pixels", "blocks"])
def moments_kernel(
    x_ptr,  # (B, P, C)
    skip_ptr,  # (B, P, C), read where ADD
    sum_ptr,  # (B, P, C), written where ADD
    means_ptr,  # (B, blocks, C) float32, written
    squares_ptr,  # (B, blocks, C) float32, written: summed squares of distances to those means
    pixels,  # P
    blocks,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    STEPS: tl.constexpr,
    ADD: tl.constexpr,
):
    """Mean and centred squares of each channel over one program's pixels.

    By Welford's recurrence (1962) from tile to tile, which nothing has to wait for, and across a
    tile's rows by the formula of Chan, Golub and LeVeque (1983). Where ADD, x + skip is what is
    measured, and written.
    """
    image, block, channels = place(C, BLOCK_C)
    rows = tl.arange(0, BLOCK_P)
    offsets = rows[:, None] * C + channels[None, :]
    start = block * (STEPS * BLOCK_P)
    means = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for step in range(STEPS):
        first = start + step * BLOCK_P
        tile = (image * pixels + first) * C
        inside = (rows < pixels - first)[:, None] & (channels < C)[None, :]
        x = tl.load(x_ptr + tile + offsets, mask=inside, other=0.0)
        if ADD:
            skip = tl.load(skip_ptr + tile + offsets, mask=inside, other=0.0)
            x = (x.to(tl.float32) + skip.to(tl.float32)).to(x.dtype)  # measured as it is stored
            tl.store(sum_ptr + tile + offsets, x, mask=inside)
        x = x.to(tl.float32)
        away = tl.where(inside, x - means, 0.0)
        means += away * (1.0 / (step + 1))
        squares += away * (x - means)
    counts = tl.minimum((pixels - start - rows + BLOCK_P - 1) // BLOCK_P, STEPS)
    counts = counts.to(tl.float32)[:, None]
    mean = tl.sum(means * counts, 0) / tl.sum(counts, 0)
    away = means - mean[None, :]
    square = tl.sum(squares + away * away * counts, 0)
    out = (image * blocks + block) * C + channels
    tl.store(means_ptr + out, mean, mask=channels < C)
    tl.store(squares_ptr + out, square, mask=channels < C)


@triton.jit(do_not_specialize=["pixels", "blocks"])
def statistics_kernel(
    means_ptr,  # (B, blocks, C) float32
    squares_ptr,  # (B, blocks, C) float32
    mean_ptr,  # (B, groups) float32, written
    rstd_ptr,  # (B, groups) float32, written
    pixels,  # P
    blocks,
    eps,
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    LENGTH: tl.constexpr,  # pixels in a block, the last one aside
    BLOCK_N: tl.constexpr,  # at least blocks
    BLOCK_W: tl.constexpr,  # at least WIDTH
):
    """One group's mean and 1 / sqrt(variance + eps) from its channels' moments in all blocks."""
    group, image = tl.program_id(0), tl.program_id(1).to(tl.int64)
    block, channel = tl.arange(0, BLOCK_N), tl.arange(0, BLOCK_W)
    inside = (block < blocks)[:, None] & (channel < WIDTH)[None, :]
    start = image * blocks * C + group * WIDTH
    offsets = block[:, None] * C + channel[None, :]
    means = tl.load(means_ptr + start + offsets, mask=inside, other=0.0)
    squares = tl.load(squares_ptr + start + offsets, mask=inside, other=0.0)
    count = tl.minimum(tl.maximum(pixels - block * LENGTH, 0), LENGTH).to(tl.float32)[:, None]
    total = pixels * 1.0 * WIDTH
    mean = tl.sum(tl.sum(means * count, 1), 0) / total
    away = tl.where(inside, means - mean, 0.0)
    variance = tl.sum(tl.sum(squares + away * away * count, 1), 0) / total
    out = image * (C // WIDTH) + group
    tl.store(mean_ptr + out, mean)
    tl.store(rstd_ptr + out, 1.0 / tl.sqrt(variance + eps))


@triton.jit(do_not_specialize=["pixels"])
def normalise_kernel(
    x_ptr,  # (B, P, C)
    y_ptr,  # (B, P, C), written
    mean_ptr,  # (B, groups) float32
    rstd_ptr,  # (B, groups) float32
    weight_ptr,  # (C,)
    bias_ptr,  # (C,)
    pixels,  # P
    C: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_C: tl.constexpr,
    SILU: tl.constexpr,
):
    """GroupNorm by given statistics, then SiLU."""
    image, block, channels = place(C, BLOCK_C)
    rows = tl.arange(0, BLOCK_P)
    offsets = rows[:, None] * C + channels[None, :]
    first = block * BLOCK_P
    tile = (image * pixels + first) * C
    inside = (rows < pixels - first)[:, None] & (channels < C)[None, :]
    x = tl.load(x_ptr + tile + offsets, mask=inside, other=0.0).to(tl.float32)
    mean, rstd, weight, bias = per_channel(
        mean_ptr, rstd_ptr, weight_ptr, bias_ptr, image, channels, C, WIDTH
    )
    y = (x - mean) * (rstd * weight) + bias  # x is centred first: a large mean costs no digits
    if SILU:
        y *= tl.sigmoid(y)
    tl.store(y_ptr + tile + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


def measure(
    x: Tensor, skip: Tensor | None, groups: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Add, where there is something to add, and find each group's mean and spread.

    Args:
        x: channels_last features, (B, C, H, W).
        skip: what to add to them, or None.
        groups: a divisor of C.
        eps: added to the variance.

    Returns:
        x, or x + skip; the mean, and 1 / sqrt(variance + eps), both (B, groups) in float32.
    """
    batch, channels, height, width = x.shape
    tiling, pixels = Tiling.of(x), height * width
    total = x if skip is None else torch.empty_like(x)
    means, squares = x.new_empty(2, batch, tiling.blocks, channels, dtype=torch.float32)
    mean, rstd = x.new_empty(2, batch, groups, dtype=torch.float32)
    with torch.cuda.device_of(x):
        moments_kernel[(tiling.blocks * tiling.across, batch)](
            x, x if skip is None else skip, total, means, squares, pixels, tiling.blocks,
            C=channels, BLOCK_P=tiling.rows, BLOCK_C=tiling.columns, STEPS=tiling.steps,
            ADD=skip is not None,
        )  # fmt: skip
        statistics_kernel[(groups, batch)](
            means, squares, mean, rstd, pixels, tiling.blocks, eps,
            C=channels, WIDTH=channels // groups, LENGTH=tiling.rows * tiling.steps,
            BLOCK_N=triton.next_power_of_2(tiling.blocks),
            BLOCK_W=triton.next_power_of_2(channels // groups), num_warps=8,
        )  # fmt: skip
    return total, mean, rstd


def normalise(
    x: Tensor, mean: Tensor, rstd: Tensor, weight: Tensor, bias: Tensor, silu: bool
) -> Tensor:
    """The norm's output by the statistics that `measure` found, and SiLU of it where wanted."""
    batch, channels, height, width = x.shape
    tiling, y = Tiling.of(x), torch.empty_like(x)
    with torch.cuda.device_of(x):
        normalise_kernel[(tiling.down * tiling.across, batch)](
            x, y, mean, rstd, weight, bias, height * width,
            C=channels, WIDTH=channels // mean.shape[1], BLOCK_P=tiling.rows,
            BLOCK_C=tiling.columns, SILU=silu,
        )  # fmt: skip
    return y
