"""Whether an encoder's distances pull the right way, which is what a loss needs of them.

A loss moves a student's output along the gradient of a distance between features. With weights
that were only trained to reconstruct, that gradient is nearly perpendicular to the error in the
image; and as they show brightness best and absolute differences are summed up, most of what adds up
over pixels is the sign of a tiny shift. Both are measured here, at several scales, and trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from dckd_losses.architecture import LEVELS
from dckd_losses.network import VQGANNetwork

from .flaws import flawed

SCALES = (1, 4, 16)  # pixels a side that gradient and error are averaged over


def alignment(network: VQGANNetwork, images: Tensor, targets: Tensor, level: int) -> Tensor:
    """Cosine between the error in images and the gradient of their distance at a level.

    Args:
        network: the encoder, in training.
        images: (B, 3, H, W) in [-1, 1], H and W 16 or more.
        targets: likewise; the error is what the images are beyond them.
        level: 0 to 4; the distance is the sum of absolute differences there.

    Returns:
        The means over images at each of `SCALES`, in [-1, 1], with a gradient to the network.
    """
    images = images.detach().requires_grad_()
    with torch.no_grad():
        wanted = _level(network, targets, level)
    distance = (_level(network, images, level) - wanted).abs().sum()
    (gradient,) = torch.autograd.grad(distance, images, create_graph=True)
    error = (images - targets).detach()
    return torch.stack([_cosine(gradient, error, scale) for scale in SCALES])


def alignments(network: VQGANNetwork, batches: Iterable[Tensor], seed: int) -> list[float]:
    """`alignment` at each level, mean over scales and batches (B, 3, H, W) to be `flawed`."""
    found = []
    for step, targets in enumerate(batches):
        images = flawed(targets, step, seed)
        levels = [alignment(network, images, targets, level).mean() for level in range(LEVELS)]
        found.append(torch.stack(levels).detach())
    return [round(value, 4) for value in torch.stack(found).mean(0).tolist()]


def _level(network: VQGANNetwork, images: Tensor, level: int) -> Tensor:
    return next(islice(network.levels(images), level, None))


def _cosine(gradient: Tensor, error: Tensor, scale: int) -> Tensor:
    coarse = (F.avg_pool2d(x, scale).flatten(1) for x in (gradient, error))
    return F.cosine_similarity(*coarse).mean()
