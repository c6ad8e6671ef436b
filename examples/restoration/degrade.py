"""MATLAB's antialiased bicubic `imresize`: the degradation of every classical SR benchmark.

Other bicubic resizers give other pixels: torch and OpenCV use a = -0.75 and do not widen the
kernel, Pillow widens it but treats borders differently. Numbers of papers hold for MATLAB's only.
"""

import math
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Image: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float64]

SUPPORT = 4  # pixels the cubic kernel spans


def matlab_bicubic(image: Image, scale: float) -> Image:
    """Resize an image as MATLAB's `imresize(image, scale, "bicubic")` does.

    Each pass is rounded to uint8, as MATLAB does for uint8 images; with equal scales it resizes
    rows first.

    Args:
        image: uint8, (H, W) or (H, W, C).
        scale: Output size over input size, above 0; 1/2 halves.

    Returns:
        uint8, (ceil(scale H), ceil(scale W)) and the input's channels.

    Raises:
        ValueError: For another dtype, rank or scale, or an image without pixels.
    """
    if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.size == 0:
        raise ValueError(
            f"matlab_bicubic got {image.dtype} {image.shape}; expected uint8 (H, W) or (H, W, C)"
        )
    if not 0 < scale < math.inf:
        raise ValueError(f"matlab_bicubic got scale {scale}; expected a positive number")
    return _resize_axis(_resize_axis(image, 0, scale), 1, scale)


def _resize_axis(image: Image, axis: int, scale: float) -> Image:
    lines = np.moveaxis(image, axis, 0)
    indices, weights = _contributions(len(lines), scale)
    weights = weights.reshape(*weights.shape, *[1] * (image.ndim - 1))
    total = sum(weight * lines[index] for index, weight in zip(indices, weights, strict=True))
    rounded = np.floor(np.clip(total, 0, 255) + 0.5).astype(np.uint8)  # MATLAB rounds halves up
    return np.ascontiguousarray(np.moveaxis(rounded, 0, axis))


def _contributions(size: int, scale: float) -> tuple[npt.NDArray[Any], Floats]:
    """Which inputs each output sums, and with what weight: two (taps, outputs) arrays."""
    shrink = min(scale, 1.0)  # antialiasing: the kernel widens only where the image shrinks
    width = SUPPORT / shrink
    centre = (np.arange(math.ceil(scale * size)) + 0.5) / scale - 0.5
    taps = np.arange(math.ceil(width) + 2)[:, None]
    index = np.floor(centre - width / 2).astype(np.int64) + taps
    weight = _cubic(shrink * (centre - index))
    index %= 2 * size  # symmetric boundary: the edge pixel is repeated, with period 2 size
    return np.minimum(index, 2 * size - 1 - index), weight / weight.sum(axis=0)


def _cubic(x: Floats) -> Floats:
    """Keys (1981), Eq. 15: cubic convolution with a = -0.5."""
    x = np.abs(x)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x < 2, far, 0.0))
