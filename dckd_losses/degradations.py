"""The degradations D_j of Eq. 4: blur, noise, resize and their mix (paper, Table 6).

The paper names them and their order of merit; ranges are those of the released code, after
Real-ESRGAN. Every image of a batch gets parameters of its own. All is tensor arithmetic of fixed
shape, random sizes included, so nothing synchronises and everything compiles.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from dckd_losses.checks import check_number
from dckd_losses.draws import Draws
from dckd_losses.resampling import resize_matrix, scatter


class Degradation(ABC):
    """Maps images (B, 3, H, W) in [0, 1] to degraded images of the same shape in [0, 1]."""

    @abstractmethod
    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        """Degrade each image on its own, all randomness taken from `draws`."""


class RandomNoise(Degradation):
    """Gaussian noise, the same on all three channels for some images.

    Args:
        sigma: range of the standard deviation, for images in [0, 1].
        gray: probability that an image's noise is gray.
    """

    def __init__(self, sigma: tuple[float, float] = (1 / 255, 30 / 255), gray: float = 0.5) -> None:
        _check_range("sigma", sigma, zero=True)
        check_number("gray", gray, "in [0, 1]", lambda x: 0 <= x <= 1)
        self.sigma = sigma
        self.gray = gray

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        batch, _, height, width = images.shape
        sigma = draws.between(*self.sigma, batch, 1, 1, 1)
        gray = draws.uniform(batch, 1, 1, 1) < self.gray
        noise = draws.normal(batch, 3, height, width)
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
        _check_range("sigma", sigma, zero=False)
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
        sigma = draws.between(*self.sigma, batch, 1)
        most = max(self.sizes) // 2
        offset = torch.arange(-most, most + 1, device=sigma.device)
        inside = [(choice == i) & (offset.abs() <= size // 2) for i, size in enumerate(self.sizes)]
        taps = torch.exp(-0.5 * (offset / sigma).square()) * torch.stack(inside).any(0)
        taps = taps / taps.sum(1, keepdim=True)
        at = _reflect(torch.arange(side, device=sigma.device)[:, None] + offset, side)
        return scatter(taps[:, None, :].expand(batch, side, -1), at.expand(batch, -1, -1), side)


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
        _check_range("up", up, zero=False)
        _check_range("down", down, zero=False)
        check_number("up_probability", up_probability, "in [0, 1]", lambda x: 0 <= x <= 1)
        self.up = up
        self.down = down
        self.up_probability = up_probability

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        batch = len(images)
        enlarge = draws.uniform(batch) < self.up_probability
        factor = torch.where(
            enlarge, draws.between(*self.up, batch), draws.between(*self.down, batch)
        )
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
        self.steps = (blur or RandomBlur(), resize or RandomResize(), noise or RandomNoise())

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


def _check_range(name: str, value: object, *, zero: bool) -> None:
    """Require two numbers in order, and whether they may be 0."""
    least = "at least 0" if zero else "above 0"
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise ValueError(f"{name} must be a range (low, high), {least}, got {value!r}")
    low, high = value
    check_number(f"{name}'s low", low, least, lambda x: x >= 0 if zero else x > 0)
    check_number(f"{name}'s high", high, f"at least its low, {low}", lambda x: x >= low)


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
