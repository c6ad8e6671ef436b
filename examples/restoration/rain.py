"""Rain streaks: the degraded photographs that deraining starts from by default."""

import numpy as np
from scipy.signal import oaconvolve  # type: ignore[import-untyped]

from .degrade import Floats, Image

ANGLE = 30.0  # degrees from the vertical at most, to either side
LENGTH = (9.0, 25.0)  # pixels
DENSITY = (0.003, 0.012)  # drops a pixel
BRIGHTNESS = (0.3, 0.8)  # of one streak, where 1 is white


def rain(image: Image, rng: np.random.Generator) -> Image:
    """Add bright streaks of one direction and length, at random places.

    Args:
        image: uint8 RGB, (H, W, 3).
        rng: Draws angle, length, density, places and brightness.

    Returns:
        The same shape and type.
    """
    streak = streak_kernel(rng.uniform(-ANGLE, ANGLE), rng.uniform(*LENGTH))
    height, width = image.shape[:2]
    margin = len(streak) // 2  # streaks that begin outside
    shape = height + 2 * margin, width + 2 * margin
    drops = (rng.random(shape) < rng.uniform(*DENSITY)) * rng.uniform(*BRIGHTNESS, shape)
    light = np.clip(oaconvolve(drops, streak, mode="valid"), 0, 1)[..., None]
    wet = image + (255.0 - image) * light
    degraded: Image = np.rint(wet).astype(np.uint8)
    return degraded


def streak_kernel(angle: float, length: float) -> Floats:
    """One streak, a pixel wide with soft borders, as bright as 1 in its middle.

    Args:
        angle: Degrees from the vertical.
        length: Pixels.

    Returns:
        float64, (k, k) with k odd.
    """
    radius = int(np.ceil(length / 2)) + 1
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    sine, cosine = np.sin(np.deg2rad(angle)), np.cos(np.deg2rad(angle))
    along, across = rows * cosine + columns * sine, columns * cosine - rows * sine
    ends = np.clip(length / 2 + 0.5 - np.abs(along), 0, 1)
    sides = np.clip(1 - np.abs(across), 0, 1)
    streak: Floats = ends * sides
    return streak
