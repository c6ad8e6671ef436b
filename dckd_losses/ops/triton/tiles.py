"""How channels_last features are divided among the programs of a Triton kernel.

In memory (B, C, H, W) is (B, P, C) with P = H * W. A program owns a tile of pixels by channels,
whose rows are contiguous; a reduction goes through several such tiles below each other. It reduces
over pixels only and leaves one number a channel, so that a group may have any width and lie across
a tile's edge; groups are put together from those small numbers afterwards, always in the same
order. Offsets to a tile are 64 bits wide, offsets inside it 32.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

TILE_ROWS = 4, 16  # pixels; 16 of 128 channels are 16 numbers for each of 128 threads
TILE_CHANNELS = 128
PROGRAMS = 4096  # of a reduction, at most: 31 for each of an H100's 132 multiprocessors
MAX_BLOCKS = 2048  # along an image, which one program puts together


class Tiling(NamedTuple):
    """How features are divided.

    Attributes:
        rows: pixels of a tile.
        columns: channels of a tile.
        across: tiles side by side.
        down: tiles below each other along an image.
        steps: tiles that one program of a reduction goes through.
        blocks: such programs along an image.
    """

    rows: int
    columns: int
    across: int
    down: int
    steps: int
    blocks: int

    @classmethod
    def of(cls, x: Tensor) -> Tiling:
        """Large tiles where every multiprocessor still gets some, small ones otherwise."""
        batch, channels, height, width = x.shape
        pixels = height * width
        divisor = channels & -channels  # the largest power of two
        columns = min(divisor if divisor >= 32 else _power_of_two(channels), TILE_CHANNELS)
        across = -(-channels // columns)
        share = max(-(-batch * pixels * across // PROGRAMS), -(-pixels // MAX_BLOCKS))
        least, most = TILE_ROWS
        length = max(_power_of_two(share), least)  # of a block, in pixels
        rows = min(length, most)
        return cls(rows, columns, across, -(-pixels // rows), length // rows, -(-pixels // length))


def _power_of_two(least: int) -> int:
    return 1 << max(least - 1, 0).bit_length()


@triton.jit
def place(C: tl.constexpr, BLOCK_C: tl.constexpr):
    """The program's image, its number along the image's pixels, and its channels.

    Tiles of the same pixels are neighbours in launch order because they are in memory.
    """
    across: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    program = tl.program_id(0)
    channels = program % across * BLOCK_C + tl.arange(0, BLOCK_C)
    return tl.program_id(1).to(tl.int64), program // across, channels


@triton.jit
def per_channel(
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
