"""Errors such as students make, for encoders to learn from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dckd_losses.degradations import RandomBlur, RandomMix
from dckd_losses.draws import Draws

MIXED_EVERY = 4  # steps; of the others the errors are in the images' own detail
GRIDS = (1, 2, 4, 8)  # pixels from one independent value of a field to the next
SHIFT_GRID, LEAST_SHIFT, LARGEST_SHIFT = 32, 1 / 128, 1 / 8  # of colours, beside that error
LEAST_SHARE = 1 / 8  # of all of it: students end close to their teachers
_blur, _mix = RandomBlur(), RandomMix()


def flawed(images: Tensor, step: int, seed: int) -> Tensor:
    """Images with errors, of another kind and size in every step and image.

    There is too much detail here and too little there, and a slight shift of colours: what a random
    blur would take, weighed by a random field, and another field. An error that could be guessed
    from an image, as that of a degradation can, would teach an encoder to recognise the
    degradation, whatever else is wrong. Every fourth step has degraded images.

    Args:
        images: (B, 3, H, W) in [-1, 1].
        step: which one it is; steps have different errors.
        seed: likewise.
    """
    draws = Draws(seed, 0, torch.tensor([step], device=images.device))
    x = images / 2 + 0.5
    if step % MIXED_EVERY == 0:
        error = _mix(x, draws) - x
    else:
        grid = GRIDS[int(draws.integers(len(GRIDS), 1))]
        error = _field(x, 1, grid, draws) * (x - _blur(x, draws))
    size = error.square().mean((1, 2, 3), keepdim=True).sqrt()
    relative = LARGEST_SHIFT * (LEAST_SHIFT / LARGEST_SHIFT) ** draws.uniform(len(x), 1, 1, 1)
    shift = _field(x, 3, SHIFT_GRID, draws) * size * relative
    return images + 2 * LEAST_SHARE ** draws.uniform(len(x), 1, 1, 1) * (error + shift)


def _field(images: Tensor, channels: int, grid: int, draws: Draws) -> Tensor:
    """Smooth normal noise (B, channels, H, W)."""
    size = images.shape[2:]
    coarse = draws.normal(len(images), channels, *(-(-side // grid) for side in size))
    return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
