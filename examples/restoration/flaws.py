"""Errors such as students make, for encoders to learn from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dckd_losses.degradations import RandomBlur, RandomMix
from dckd_losses.draws import Draws

MIXED_EVERY = 4  # steps; of the others the errors are in the images' own detail
GRIDS = (2, 4, 8, 16)  # pixels from one independent value of that field to the next
SHIFT_GRID, LEAST_SHIFT = 32, 1 / 16  # of colours, as a share of the other error
LEAST_SHARE = 1 / 8  # of all of it: students end close to their teachers
_blur, _mix = RandomBlur(), RandomMix()


def flawed(images: Tensor, step: int, seed: int) -> Tensor:
    """Images with errors, of another kind and size in every step and image.

    There is too much of a band of frequencies here and too little there, and a slight shift of
    colours: the images' own detail, weighed by a smooth random field, and another field. An error
    that could be guessed from an image, as that of a degradation can, would teach an encoder to
    recognise the degradation, whatever else is wrong. Every fourth step has degraded images.

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
        error = _field(x, 1, grid, draws) * _detail(x, draws)
    size = error.square().mean((1, 2, 3), keepdim=True).sqrt()
    shift = _field(x, 3, SHIFT_GRID, draws) * size * LEAST_SHIFT ** _uniform(x, draws)
    return images + 2 * LEAST_SHARE ** _uniform(x, draws) * (error + shift)


def _detail(images: Tensor, draws: Draws) -> Tensor:
    """What a random blur takes from each image, or what a second one takes from the first's."""
    once = _blur(images, draws)
    fine = _uniform(images, draws) < 0.5
    return torch.where(fine, images - once, once - _blur(once, draws))


def _field(images: Tensor, channels: int, grid: int, draws: Draws) -> Tensor:
    """Smooth normal noise (B, channels, H, W)."""
    size = images.shape[2:]
    coarse = draws.normal(len(images), channels, *(-(-side // grid) for side in size))
    return F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)


def _uniform(images: Tensor, draws: Draws) -> Tensor:
    """A number in [0, 1) for each image."""
    return draws.uniform(len(images), 1, 1, 1)
