"""Blur of a moving camera: the degraded photographs that deblurring starts from by default."""

import numpy as np
from scipy.signal import oaconvolve  # type: ignore[import-untyped]

from .degrade import Floats, Image

LENGTH = (4.0, 9.0)  # pixels that the camera travels, drawn uniformly
TURN = 0.6  # standard deviation, in radians, of how far the path turns between two moments
MOMENTS = 64  # of one exposure
NOISE = 1.0  # standard deviation of the sensor's, in grey levels


def camera_motion(image: Image, rng: np.random.Generator) -> Image:
    """Blur an image along the path of a shaken camera, and add a little noise.

    Args:
        image: uint8 RGB, (H, W, 3).
        rng: Draws path and noise.

    Returns:
        The same shape and type.
    """
    kernel = motion_kernel(rng)
    radius = len(kernel) // 2
    padded = np.pad(image.astype(np.float64), ((radius,) * 2, (radius,) * 2, (0, 0)), "reflect")
    blurred = oaconvolve(padded, kernel[..., None], mode="valid", axes=(0, 1))
    blurred += rng.normal(0, NOISE, blurred.shape)
    restored: Image = np.clip(np.rint(blurred), 0, 255).astype(np.uint8)
    return restored


def motion_kernel(rng: np.random.Generator) -> Floats:
    """The kernel of one exposure: a path of random length that turns at random on its way.

    Returns:
        float64, (k, k) with k odd, its sum 1 and its centre of mass within half a pixel of the
        middle, so that blurring moves nothing.
    """
    headings = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, TURN, MOMENTS))
    steps = np.stack([np.sin(headings), np.cos(headings)])
    path = np.cumsum(steps, axis=1) * rng.uniform(*LENGTH) / MOMENTS
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
