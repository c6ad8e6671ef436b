"""3x3 convolutions on CPU by Winograd's minimal filtering, F(4x4, 3x3).

A tile of 4x4 outputs costs 36 products a channel pair in place of 144; the transforms around them
are small matrix products. The algebra is exact; in float32 rounding grows from 4e-7 to 2e-6. After
Lavin and Gray 2016, "Fast Algorithms for Convolutional Neural Networks".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

MIN_PIXELS = 1024  # in a batch: below, transforming the weights costs what the products save
CHANNELS = (96, 256)  # below, products are no longer what costs; above, weights are
SCRATCH_BYTES = 4 << 20  # of one strip of tiles; larger is no faster, and counts as peak memory
INPUT, OUTPUT, KERNEL = 6, 4, 3  # a tile's sides

# Interpolation at 0, 1, -1, 2, -2 and infinity.
_INPUT = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_OUTPUT = ((1, 1, 1, 1, 1, 0), (0, 1, -1, 2, -2, 0), (0, 1, 1, 4, 4, 0), (0, 1, -1, 8, -8, 1))
_KERNEL = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)


def pays(x: Tensor, weight: Tensor) -> bool:
    """Whether `conv2d` is faster than torch's own here (measured on two cores with AVX-512).

    Args:
        x: (B, C, H, W).
        weight: (K, C, 3, 3).
    """
    pixels = x.shape[0] * x.shape[2] * x.shape[3]
    low, high = sorted(weight.shape[:2])
    return (
        x.device.type == "cpu"
        and x.dtype in (torch.float32, torch.float64)
        and weight.shape[2:] == (KERNEL, KERNEL)
        and pixels >= MIN_PIXELS
        and CHANNELS[0] <= low
        and high <= CHANNELS[1]
    )


Activate = Callable[[Tensor, Tensor], None]


def conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, activate: Sequence[Activate] | None = None
) -> Tensor:
    """A 3x3 convolution of stride 1 and padding 1, without autograd.

    Args:
        x: (B, C, H, W); channels_last is read as it lies, other layouts more slowly.
        weight: (K, C, 3, 3).
        bias: (K,), or None.
        activate: for each image what to do with its features before, from (h, W, C) into (h, W,
            C); none by default. Done piece by piece, it needs no memory for the whole.

    Returns:
        (B, K, H, W) in channels_last.
    """
    matrices = _matrices(x.dtype)
    out_channels, channels = weight.shape[:2]
    batch, _, height, width = x.shape
    shape = (batch, out_channels, height, width)
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    kernel = matrices.kernel @ weight.permute(2, 3, 1, 0).reshape(KERNEL**2, -1)
    kernel = kernel.view(INPUT**2, channels, out_channels)
    strip = _Strip(x, out_channels)
    images = zip(x.permute(0, 2, 3, 1), out.permute(0, 2, 3, 1), strict=True)
    for (image, result), prepare in zip(images, activate or [_copy] * batch, strict=True):
        for top in range(0, height, strip.rows * OUTPUT):
            strip.read(image, top, prepare)
            strip.transform(matrices, kernel)
            strip.write(result, top, bias)
    return out


def _copy(x: Tensor, out: Tensor) -> None:
    out.copy_(x)


class _Strip:
    """Some rows of tiles of one image, and the scratch memory that they pass through."""

    def __init__(self, x: Tensor, out_channels: int) -> None:
        channels, height, width = x.shape[1:]
        down, across = -(-height // OUTPUT), -(-width // OUTPUT)
        per_row = INPUT**2 * across * max(channels, out_channels)
        most = max(1, SCRATCH_BYTES // (per_row * x.element_size()))
        self.rows = -(-down // -(-down // most))  # as many in each strip, as nearly as can be
        self.tiles, self.shape = self.rows * across, (self.rows, across)
        self.channels, self.out_channels = channels, out_channels
        self._one, self._two = x.new_empty(2, self.rows * per_row)
        border = INPUT - OUTPUT
        self._window = x.new_zeros(self.rows * OUTPUT + border, across * OUTPUT + border, channels)
        row, column, _ = self._window.stride()
        self._overlapping = self._window.as_strided(
            (INPUT, INPUT, *self.shape, channels), (row, column, OUTPUT * row, OUTPUT * column, 1)
        )

    def read(self, image: Tensor, top: int, prepare: Activate) -> None:
        """Gather the tiles whose outputs begin in this row of an image (H, W, C)."""
        height, width, _ = image.shape
        first, last = max(top - 1, 0), min(top + self.rows * OUTPUT + 1, height)
        before, after = first - (top - 1), last - (top - 1)
        self._window[:before].zero_()
        prepare(image[first:last], self._window[before:after, 1 : width + 1])
        self._window[after:].zero_()
        tiles = self._one[: INPUT**2 * self.tiles * self.channels]
        tiles.view(self._overlapping.shape).copy_(self._overlapping)

    def transform(self, matrices: Matrices, kernel: Tensor) -> None:
        """From tiles of inputs to tiles of outputs."""
        n, c, k = self.tiles, self.channels, self.out_channels
        tiles = self._one[: INPUT**2 * n * c].view(INPUT**2, n * c)
        spectrum = self._two[: INPUT**2 * n * c].view(INPUT**2, n * c)
        torch.mm(matrices.input, tiles, out=spectrum)
        product = self._one[: INPUT**2 * n * k].view(INPUT**2, n, k)
        torch.bmm(spectrum.view(INPUT**2, n, c), kernel, out=product)
        outputs = self._two[: OUTPUT**2 * n * k].view(OUTPUT**2, n * k)
        torch.mm(matrices.output, product.view(INPUT**2, n * k), out=outputs)

    def write(self, result: Tensor, top: int, bias: Tensor | None) -> None:
        """Put the outputs into the rows of a result (H, W, K) from this one on."""
        width, k = result.shape[1:]
        rows, across = self.shape
        outputs = self._two[: OUTPUT**2 * self.tiles * k].view(OUTPUT, OUTPUT, rows, across, k)
        outputs = outputs.permute(2, 0, 3, 1, 4)
        into = result[top : top + rows * OUTPUT]
        if into.shape[:2] == (rows * OUTPUT, across * OUTPUT):
            into = into.view(rows, OUTPUT, across, OUTPUT, k)
        else:  # the last tiles reach over the edge
            outputs = outputs.reshape(rows * OUTPUT, across * OUTPUT, k)[: len(into), :width]
        if bias is None:
            into.copy_(outputs)
        else:
            torch.add(outputs, bias, out=into)


class Matrices(NamedTuple):
    """The three transforms of flattened tiles."""

    input: Tensor  # (36, 36)
    kernel: Tensor  # (36, 9)
    output: Tensor  # (16, 36)


@cache
def _matrices(dtype: torch.dtype) -> Matrices:
    squared = []
    for rows in (_INPUT, _KERNEL, _OUTPUT):
        matrix = torch.tensor(rows, dtype=torch.float64)
        squared.append(torch.kron(matrix, matrix).to(dtype))
    return Matrices(*squared)
