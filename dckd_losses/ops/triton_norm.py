"""GroupNorm and SiLU by Triton, for CUDA. Features are channels_last, arithmetic is float32.

In memory (B, C, H, W) is (B, P, C) with P = H * W. A program owns a tile of pixels by channels. A
reduction goes through several tiles below each other and leaves one number a channel, so a group
may have any width; groups are put together from these numbers, always in the same order. Forward
reads features twice, for the statistics and to normalise; backward twice, for the sums and for the
gradient. Offsets to a tile have 64 bits, offsets inside it 32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd import Function

from dckd_losses.ops import TRITON_DTYPES, first_order

TILE_ROWS = 4, 16  # pixels; 16 of 128 channels are 16 numbers for each of 128 threads
TILE_CHANNELS = 128
PROGRAMS = 4096  # of a reduction, at most: 31 for each of an H100's 132 multiprocessors
MAX_BLOCKS = 2048  # along an image, which one program puts together


class Tiling(NamedTuple):
    """How features are divided among programs."""

    rows: int  # pixels of a tile
    columns: int  # channels of a tile
    across: int  # tiles side by side
    down: int  # tiles below each other along an image
    steps: int  # tiles that one program of a reduction goes through
    blocks: int  # such programs along an image

    @classmethod
    def of(cls, x: Tensor) -> Tiling:
        """Large tiles where every multiprocessor still gets some, small ones otherwise."""
        batch, channels, height, width = x.shape
        pixels = height * width
        divisor = channels & -channels  # the largest power of two
        columns = divisor if divisor >= 32 else triton.next_power_of_2(channels)
        columns = min(columns, TILE_CHANNELS)
        across = triton.cdiv(channels, columns)
        share = max(triton.cdiv(batch * pixels * across, PROGRAMS), triton.cdiv(pixels, MAX_BLOCKS))
        least, most = TILE_ROWS
        length = max(triton.next_power_of_2(share), least)  # of a block, in pixels
        rows = min(length, most)
        down, blocks = triton.cdiv(pixels, rows), triton.cdiv(pixels, length)
        return cls(rows, columns, across, down, length // rows, blocks)


# fmt: off
@triton.jit
def _tile(pixels, first, image, channels, C: tl.constexpr, BLOCK_P: tl.constexpr):
    """A tile's offset in memory, the offsets inside it, and which of them are features."""
    rows = tl.arange(0, BLOCK_P)
    inside = (rows < pixels - first)[:, None] & (channels < C)[None, :]
    return (image * pixels + first) * C, rows[:, None] * C + channels[None, :], inside


@triton.jit
def _place(C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The program's image, its number along the image's pixels, and its channels.

    Tiles of the same pixels are neighbours in launch order because they are in memory.
    """
    across: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    channels = program % across * BLOCK_C + tl.arange(0, BLOCK_C)
    return tl.program_id(1).to(tl.int64), program // across, channels


@triton.jit
def _per_channel(
    mean_ptr, rstd_ptr, weight_ptr, bias_ptr, image, channels, C: tl.constexpr, WIDTH: tl.constexpr
):
    """The statistics of each channel's group and its affine parameters, as rows."""
    known = channels < C
    group = image * (C // WIDTH) + channels // WIDTH
    mean = tl.load(mean_ptr + group, mask=known, other=0.0)
    rstd = tl.load(rstd_ptr + group, mask=known, other=0.0)
    weight = tl.load(weight_ptr + channels, mask=known, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + channels, mask=known, other=0.0).to(tl.float32)
    return mean[None, :], rstd[None, :], weight[None, :], bias[None, :]


@triton.jit(do_not_specialize=["pixels", "blocks"])
def moments_kernel(
    x_ptr,  # (B, P, C)
    means_ptr, squares_ptr,  # (B, blocks, C) float32, written: means and squared distances to them
    pixels, blocks,  # P
    C: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr, STEPS: tl.constexpr,
):
    """Mean and centred squares of each channel over one program's pixels.

    By Welford's recurrence (1962) from tile to tile, and across a tile's rows by the formula of
    Chan, Golub and LeVeque (1983).
    """
    image, block, channels = _place(C, BLOCK_C)
    start = block * (STEPS * BLOCK_P)
    means = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    squares = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for step in range(STEPS):
        tile, offsets, inside = _tile(pixels, start + step * BLOCK_P, image, channels, C, BLOCK_P)
        x = tl.load(x_ptr + tile + offsets, mask=inside, other=0.0).to(tl.float32)
        away = tl.where(inside, x - means, 0.0)
        means += away * (1.0 / (step + 1))
        squares += away * (x - means)
    rows = tl.arange(0, BLOCK_P)
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
    means_ptr, squares_ptr,  # (B, blocks, C) float32
    mean_ptr, rstd_ptr,  # (B, groups) float32, written
    pixels, blocks, eps,
    C: tl.constexpr, WIDTH: tl.constexpr,
    LENGTH: tl.constexpr,  # pixels in a block, the last one aside
    BLOCK_N: tl.constexpr, BLOCK_W: tl.constexpr,  # at least blocks and WIDTH, powers of two
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
    x_ptr, y_ptr,  # (B, P, C), the second written
    mean_ptr, rstd_ptr,  # (B, groups) float32
    weight_ptr, bias_ptr,  # (C,)
    pixels,
    C: tl.constexpr, WIDTH: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    SILU: tl.constexpr,
):
    """GroupNorm by given statistics, then SiLU."""
    image, block, channels = _place(C, BLOCK_C)
    tile, offsets, inside = _tile(pixels, block * BLOCK_P, image, channels, C, BLOCK_P)
    x = tl.load(x_ptr + tile + offsets, mask=inside, other=0.0).to(tl.float32)
    mean, rstd, weight, bias = _per_channel(
        mean_ptr, rstd_ptr, weight_ptr, bias_ptr, image, channels, C, WIDTH
    )
    y = (x - mean) * (rstd * weight) + bias  # x is centred first: a large mean costs no digits
    if SILU:
        y *= tl.sigmoid(y)
    tl.store(y_ptr + tile + offsets, y.to(y_ptr.dtype.element_ty), mask=inside)


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
    x_ptr, dy_ptr,  # (B, P, C)
    mean_ptr, rstd_ptr,  # (B, groups) float32
    weight_ptr, bias_ptr,  # (C,)
    sums_ptr,  # (2, B, blocks, C) float32, written
    pixels, blocks,
    C: tl.constexpr, WIDTH: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    SILU: tl.constexpr, STEPS: tl.constexpr,
):
    """The derivative by the normed input, and its product with that input, summed over pixels."""
    image, block, channels = _place(C, BLOCK_C)
    mean, rstd, weight, bias = _per_channel(
        mean_ptr, rstd_ptr, weight_ptr, bias_ptr, image, channels, C, WIDTH
    )
    plain = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    product = tl.zeros([BLOCK_P, BLOCK_C], tl.float32)
    for step in range(STEPS):
        first = (block * STEPS + step) * BLOCK_P
        tile, offsets, inside = _tile(pixels, first, image, channels, C, BLOCK_P)
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
    x_ptr, dy_ptr, dx_ptr,  # (B, P, C), the third written
    mean_ptr, rstd_ptr,  # (B, groups) float32
    weight_ptr, bias_ptr,  # (C,)
    sums_ptr,  # (2, B, groups) float32: of `slopes_kernel`, over blocks and the group's channels
    pixels,
    C: tl.constexpr, WIDTH: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_C: tl.constexpr,
    SILU: tl.constexpr,
):
    """The derivative by x: what is left of the slope without its mean and its part along x."""
    image, block, channels = _place(C, BLOCK_C)
    tile, offsets, inside = _tile(pixels, block * BLOCK_P, image, channels, C, BLOCK_P)
    x = tl.load(x_ptr + tile + offsets, mask=inside, other=0.0).to(tl.float32)
    dy = tl.load(dy_ptr + tile + offsets, mask=inside, other=0.0).to(tl.float32)
    mean, rstd, weight, bias = _per_channel(
        mean_ptr, rstd_ptr, weight_ptr, bias_ptr, image, channels, C, WIDTH
    )
    normed, slope = _slope(x, dy, mean, rstd, weight, bias, SILU)
    group = image * (C // WIDTH) + channels // WIDTH
    second = tl.num_programs(1) * (C // WIDTH)
    total = pixels * 1.0 * WIDTH
    plain = tl.load(sums_ptr + group, mask=channels < C, other=0.0) / total
    product = tl.load(sums_ptr + second + group, mask=channels < C, other=0.0) / total
    dx = (slope - plain[None, :] - normed * product[None, :]) * rstd
    tl.store(dx_ptr + tile + offsets, dx.to(dx_ptr.dtype.element_ty), mask=inside)
# fmt: on


class _GroupNormSiLU(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool
    ) -> Tensor:
        batch, channels, height, width = x.shape
        pixels, t = height * width, Tiling.of(x)
        means, squares = x.new_empty(2, batch, t.blocks, channels, dtype=torch.float32)
        mean, rstd = x.new_empty(2, batch, groups, dtype=torch.float32)
        y = torch.empty_like(x)
        with torch.cuda.device_of(x):
            moments_kernel[(t.blocks * t.across, batch)](
                x, means, squares, pixels, t.blocks,
                C=channels, BLOCK_P=t.rows, BLOCK_C=t.columns, STEPS=t.steps,
            )  # fmt: skip
            statistics_kernel[(groups, batch)](
                means, squares, mean, rstd, pixels, t.blocks, eps,
                C=channels, WIDTH=channels // groups, LENGTH=t.rows * t.steps,
                BLOCK_N=triton.next_power_of_2(t.blocks),
                BLOCK_W=triton.next_power_of_2(channels // groups), num_warps=8,
            )  # fmt: skip
            normalise_kernel[(t.down * t.across, batch)](
                x, y, mean, rstd, weight, bias, pixels,
                C=channels, WIDTH=channels // groups, BLOCK_P=t.rows, BLOCK_C=t.columns, SILU=silu,
            )  # fmt: skip
        ctx.save_for_backward(x, mean, rstd, weight, bias)
        ctx.silu = silu
        return y

    @staticmethod
    @first_order
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, rstd, weight, bias = ctx.saved_tensors
        dy = dy.contiguous(memory_format=torch.channels_last)
        batch, channels, height, width = x.shape
        pixels, groups, t = height * width, mean.shape[1], Tiling.of(x)
        sums = x.new_empty(2, batch, t.blocks, channels, dtype=torch.float32)
        dx = torch.empty_like(x)
        shared = dict(
            C=channels, WIDTH=channels // groups, BLOCK_P=t.rows, BLOCK_C=t.columns, SILU=ctx.silu
        )
        with torch.cuda.device_of(x):
            slopes_kernel[(t.blocks * t.across, batch)](
                x, dy, mean, rstd, weight, bias, sums, pixels, t.blocks, STEPS=t.steps, **shared
            )
            sums = sums.view(2, batch, t.blocks, groups, -1).sum((2, 4))
            gradient_kernel[(t.down * t.across, batch)](
                x, dy, dx, mean, rstd, weight, bias, sums, pixels, **shared
            )
        return dx, None, None, None, None, None


def group_norm_silu(
    x: Tensor, weight: Tensor, bias: Tensor, groups: int, eps: float, silu: bool = True
) -> Tensor:
    """See `norm.group_norm_silu`; the result is channels_last and in x's dtype.

    Raises:
        ValueError: x is not (B, C, H, W) in one of Triton's dtypes, or groups do not divide C.
    """
    channels = len(weight)
    if x.dim() != 4 or x.shape[1] != channels or x.dtype not in TRITON_DTYPES or channels % groups:
        raise ValueError(
            f"expected features (B, {channels}, H, W) in float32, float16 or bfloat16, and groups "
            f"that divide them, got {tuple(x.shape)} in {x.dtype} and {groups} groups"
        )
    x = x.contiguous(memory_format=torch.channels_last)
    out: Tensor = _GroupNormSiLU.apply(x, weight, bias, groups, eps, silu)
    return out
