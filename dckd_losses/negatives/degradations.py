"""The degradations D_j of Eq. 4: blur, noise, resize and their mix (paper, Table 6).

The paper names them and their order of merit; ranges are those of the released code, after
Real-ESRGAN. Every image of a batch gets parameters of its own. All shapes are fixed, random
sizes included, so nothing reads from the device and everything compiles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dckd_losses.checks import check_number
from dckd_losses.negatives.draws import Draws

BICUBIC_A = -0.75  # torch's and OpenCV's bicubic


class Degradation(ABC):
    """Maps images (B, C, H, W) in [0, 1] to degraded images of the same shape in [0, 1]."""

    @abstractmethod
    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Degrade each image on its own, all randomness taken from `draws`."""


class RandomNoise(Degradation):
    """Gaussian noise, the same on all channels for some images.

    Args:
        sigma: range of the standard deviation, for images in [0, 1].
        gray: probability that an image's noise is gray.
    """

    def __init__(self, sigma: tuple[float, float] = (1 / 255, 30 / 255), gray: float = 0.5) -> None:
        _check_range("sigma", sigma, at_least=0)
        check_number("gray", gray, at_least=0, at_most=1)
        self.sigma = sigma
        self.gray = gray

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        batch, channels, height, width = images.shape
        sigma = draws.uniform(batch, 1, 1, 1, low=self.sigma[0], high=self.sigma[1])
        gray = draws.uniform(batch, 1, 1, 1) < self.gray
        noise = draws.normal(batch, channels, height, width)
        noise = torch.where(gray, noise[:, :1], noise)
        return (images + (sigma * noise).to(images.dtype)).clamp(0, 1)


class RandomBlur(Degradation):
    """Axis-aligned Gaussian blur, borders reflected.

    Args:
        sizes: kernel sizes to choose from, odd, for each axis on its own.
        sigma: range of the standard deviation in pixels, for each axis on its own.
    """

    def __init__(
        self,
        sizes: tuple[int, ...] = (3, 5, 7, 9, 11),
        sigma: tuple[float, float] = (0.1, 2.0),
    ) -> None:
        odd = isinstance(sizes, (tuple, list)) and all(
            isinstance(size, int) and size > 0 and size % 2 == 1 for size in sizes
        )
        if not odd or not sizes:
            raise ValueError(f"sizes must be odd numbers of pixels, such as (3, 5), got {sizes!r}")
        _check_range("sigma", sigma, above=0)
        self.sizes = sizes
        self.sigma = sigma

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        rows = self._matrix(images, images.shape[2], draws)
        columns = self._matrix(images, images.shape[3], draws)
        return _separable(images, rows, columns)

    def _matrix(self, images: Tensor, side: int, draws: Draws) -> Tensor:
        """One blur along an axis per image, as a matrix (B, side, side)."""
        batch = len(images)
        choice = draws.integers(len(self.sizes), batch, 1)
        sigma = draws.uniform(batch, 1, low=self.sigma[0], high=self.sigma[1])
        most = max(self.sizes) // 2
        offset = torch.arange(-most, most + 1, device=sigma.device)
        inside = [(choice == i) & (offset.abs() <= size // 2) for i, size in enumerate(self.sizes)]
        taps = torch.exp(-0.5 * (offset / sigma).square()) * torch.stack(inside).any(0)
        taps = taps / taps.sum(1, keepdim=True)
        at = _reflect(torch.arange(side, device=sigma.device)[:, None] + offset, side)
        return _scatter(taps[:, None, :].expand(batch, side, -1), at.expand(batch, -1, -1), side)


class RandomResize(Degradation):
    """Resize to a random size and back, by area, bilinear or bicubic interpolation.

    Args:
        up: range of the factor when enlarging.
        down: range of the factor when shrinking.
        up_probability: how often images are enlarged first.
    """

    def __init__(
        self,
        up: tuple[float, float] = (1.0, 1.5),
        down: tuple[float, float] = (0.5, 1.0),
        up_probability: float = 0.25,
    ) -> None:
        _check_range("up", up, above=0)
        _check_range("down", down, above=0)
        check_number("up_probability", up_probability, at_least=0, at_most=1)
        self.up = up
        self.down = down
        self.up_probability = up_probability

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        batch = len(images)
        enlarge = draws.uniform(batch) < self.up_probability
        up = draws.uniform(batch, low=self.up[0], high=self.up[1])
        down = draws.uniform(batch, low=self.down[0], high=self.down[1])
        factor = torch.where(enlarge, up, down)
        there, back = draws.integers(3, batch), draws.integers(3, batch)
        rows, columns = (
            self._matrix(side, factor, there, back) for side in (images.shape[2], images.shape[3])
        )
        return _separable(images, rows, columns)

    def _matrix(self, side: int, factor: Tensor, there: Tensor, back: Tensor) -> Tensor:
        """There and back along one axis per image, as one matrix (B, side, side)."""
        most = int(side * self.up[1]) + 1
        small = (side * factor).round().clamp(1, most)
        full = torch.full_like(small, side)
        shrink = resize_matrix(full, small, side, most, there)
        with torch.autocast(shrink.device.type, enabled=False):
            return resize_matrix(small, full, most, side, back) @ shrink


class RandomMix(Degradation):
    """Blur, resize and noise in this order, each with probability 1/2 but at least one.

    Args:
        blur: the blur to use.
        resize: the resizing to use.
        noise: the noise to use.
    """

    def __init__(
        self,
        blur: RandomBlur | None = None,
        resize: RandomResize | None = None,
        noise: RandomNoise | None = None,
    ) -> None:
        self.steps = (
            RandomBlur() if blur is None else blur,
            RandomResize() if resize is None else resize,
            RandomNoise() if noise is None else noise,
        )
        for step in self.steps:
            if not isinstance(step, Degradation):
                raise ValueError(f"blur, resize and noise must be degradations, got {step!r}")

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        subset = 1 + draws.integers(7, len(images), 1, 1, 1)  # the subsets but the empty one
        for bit, step in enumerate(self.steps):
            images = torch.where((subset >> bit) % 2 == 1, step(images, draws), images)
        return images


DEGRADATIONS: dict[str, type[Degradation]] = {
    "blur": RandomBlur,
    "noise": RandomNoise,
    "resize": RandomResize,
    "mix": RandomMix,
}


def _check_range(name: str, value: object, **bounds: float) -> None:
    """Require two numbers in order, the first within bounds of `check_number`."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name} must be a range (low, high), got {value!r}")
    low, high = value
    check_number(f"{name}'s low", low, **bounds)  # type: ignore[arg-type]
    check_number(f"{name}'s high", high, at_least=low)


def _separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one matrix a side to each image: rows (B, H, H), columns (B, W, W)."""
    with torch.autocast(images.device.type, enabled=False):
        x = images.to(rows.dtype)
        x = rows[:, None] @ x @ columns[:, None].transpose(2, 3)
    return x.clamp(0, 1).to(images.dtype)


def _reflect(index: Tensor, side: int) -> Tensor:
    """Mirror positions at the first and the last pixel, however far outside they lie."""
    if side == 1:
        return torch.zeros_like(index)
    index = index.remainder(2 * (side - 1))
    return torch.minimum(index, 2 * (side - 1) - index)


def _scatter(weights: Tensor, at: Tensor, side: int) -> Tensor:
    """Rows of a matrix from taps: weights and positions (B, rows, taps) to (B, rows, side)."""
    matrix = weights.new_zeros(*weights.shape[:2], side)
    return matrix.scatter_add(2, at, weights)


def resize_matrix(source: Tensor, target: Tensor, columns: int, rows: int, mode: Tensor) -> Tensor:
    """Interpolation along one axis as matrices, one per image.

    Equal to `torch.nn.functional.interpolate` (align_corners=False, no antialiasing).

    Args:
        source: pixels before, (B,); at most `columns`.
        target: pixels after, (B,); at most `rows`. Rows beyond are copies that nothing reads.
        columns: width of the matrices.
        rows: height of the matrices.
        mode: 0 area, 1 bilinear, 2 bicubic, (B,).

    Returns:
        (B, rows, columns) float32; each row sums to one.
    """
    source, target = source[:, None, None], target[:, None, None]
    row = torch.arange(rows, device=source.device)[:, None]
    column = torch.arange(columns, device=source.device)
    last = (source - 1).long()
    first = torch.floor(row * source / target)
    end = torch.ceil((row + 1) * source / target)
    inside = (column >= torch.minimum(first, source - 1)) & (column < end) & (column <= last)
    area = inside / inside.sum(2, keepdim=True)
    centre = (row + 0.5) * source / target - 0.5
    below = torch.floor(centre)
    t = centre - below
    a = BICUBIC_A
    linear = torch.cat([torch.zeros_like(t), 1 - t, t, torch.zeros_like(t)], 2)
    cubic = torch.cat(
        [
            ((a * (t + 1) - 5 * a) * (t + 1) + 8 * a) * (t + 1) - 4 * a,
            ((a + 2) * t - (a + 3)) * t * t + 1,
            ((a + 2) * (1 - t) - (a + 3)) * (1 - t) * (1 - t) + 1,
            ((a * (2 - t) - 5 * a) * (2 - t) + 8 * a) * (2 - t) - 4 * a,
        ],
        2,
    )
    taps = torch.arange(-1, 3, device=source.device)
    at = torch.minimum((below.long() + taps).clamp(min=0), last)
    points = _scatter(torch.where(mode[:, None, None] == 1, linear, cubic), at, columns)
    return torch.where(mode[:, None, None] == 0, area, points)
