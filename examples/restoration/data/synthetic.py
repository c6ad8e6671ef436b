"""Degradations made here: MATLAB's bicubic for super-resolution, a moving camera's blur, and rain.

`matlab_bicubic` is MATLAB's antialiased `imresize`, the degradation of every classical SR
benchmark. Other bicubic resizers give other pixels: torch and OpenCV use a = -0.75 and do not widen
the kernel, Pillow widens it but treats borders differently. Numbers of papers hold for MATLAB's.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.signal import oaconvolve  # type: ignore[import-untyped]

from .images import Floats, Image

SUPPORT = 4  # pixels the cubic kernel spans


def matlab_bicubic(image: Image, scale: float) -> Image:
    """Resize an image as MATLAB's `imresize(image, scale, "bicubic")` does; 1/2 halves.

    Each pass is rounded to uint8, as MATLAB does for uint8 images; with equal scales it resizes
    rows first. uint8 (H, W) or (H, W, C) becomes (ceil(scale H), ceil(scale W)) of the same
    channels.

    Raises:
        ValueError: Another dtype, rank or scale, or an image without pixels.
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


BLUR_LENGTH = (4.0, 9.0)  # pixels that the camera travels, drawn uniformly
BLUR_TURN = 0.6  # standard deviation, in radians, of how far the path turns between two moments
BLUR_MOMENTS = 64  # of one exposure
SENSOR_NOISE = 1.0  # standard deviation of the sensor's, in grey levels


def camera_motion(image: Image, rng: np.random.Generator) -> Image:
    """Blur an image, uint8 RGB, along the path of a shaken camera, and add a little noise."""
    kernel = motion_kernel(rng)
    radius = len(kernel) // 2
    padded = np.pad(image.astype(np.float64), ((radius,) * 2, (radius,) * 2, (0, 0)), "reflect")
    blurred = oaconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))
    blurred += rng.normal(0, SENSOR_NOISE, blurred.shape)
    rounded: Image = np.clip(np.rint(blurred), 0, 255).astype(np.uint8)
    return rounded


def motion_kernel(rng: np.random.Generator) -> Floats:
    """The kernel of one exposure: a path of random length that turns at random on its way.

    float64, (k, k) with k odd, its sum 1 and its centre of mass within half a pixel of the middle,
    so that blurring moves nothing.
    """
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, BLUR_TURN, BLUR_MOMENTS))
    steps = np.stack([np.sin(headings), np.cos(headings)])
    path = np.cumsum(steps, axis=1) * rng.uniform(*BLUR_LENGTH) / BLUR_MOMENTS
    path -= path.mean(axis=1, keepdims=True)
    radius = int(np.ceil(np.abs(path).max())) + 1
    kernel = np.zeros((2 * radius + 1,) * 2)
    corner = np.floor(path).astype(int)
    for row in (0, 1):  # each moment falls on four pixels, by its distance from them
        for column in (0, 1):
            place = corner + np.array([[row], [column]])
            share = np.prod(1 - np.abs(path - place), axis=0)
            np.add.at(kernel, tuple(place + radius), share)
    return kernel / kernel.sum()


STREAK_ANGLE = 30.0  # degrees from the vertical at most, to either side
STREAK_LENGTH = (9.0, 25.0)  # pixels
STREAK_DENSITY = (0.003, 0.012)  # drops a pixel
STREAK_BRIGHTNESS = (0.3, 0.8)  # of one streak, where 1 is white


def rain(image: Image, rng: np.random.Generator) -> Image:
    """Add bright streaks of one direction and length to an image, uint8 RGB, at random places."""
    streak = streak_kernel(rng.uniform(-STREAK_ANGLE, STREAK_ANGLE), rng.uniform(*STREAK_LENGTH))
    height, width = image.shape[:2]
    margin = len(streak) // 2  # streaks that begin outside
    shape = height + 2 * margin, width + 2 * margin
    drops = (rng.random(shape) < rng.uniform(*STREAK_DENSITY)) * rng.uniform(
        *STREAK_BRIGHTNESS, shape
    )
    light = np.clip(oaconvolve(drops, streak, mode="valid"), 0, 1)[..., None]
    wet = image + (255.0 - image) * light
    degraded: Image = np.rint(wet).astype(np.uint8)
    return degraded


def streak_kernel(angle: float, length: float) -> Floats:
    """One streak, a pixel wide with soft borders, as bright as 1 in its middle.

    float64, (k, k) with k odd, for an angle in degrees from the vertical and a length in pixels.
    """
    radius = int(np.ceil(length / 2)) + 1
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    sine, cosine = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    along, across = rows * cosine + columns * sine, columns * cosine - rows * sine
    ends = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1)
    sides = np.clip(1 - np.abs(across), 0, 1)
    streak: Floats = ends * sides
    return streak
