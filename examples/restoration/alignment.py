"""Whether an encoder's distances pull the right way, which is what a loss needs of them.

A loss moves a student's output along the gradient of a distance between features. With weights
that were only trained to reconstruct, that gradient is nearly perpendicular to the error in the
image, and most of what adds up over pixels in it is the sign of a tiny shift, since they show
brightness best and absolute differences are summed up. Here it is measured, and can be trained.
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

SCALES = (1, 4, 16)  # pixels a side of the blocks over which gradient and error are summed up


def alignment(network: VQGANNetwork, images: Tensor, targets: Tensor, level: int) -> Tensor:
    """Cosine between the error in images and the gradient of their distance at a level.

    Args:
        network: the encoder, in training.
        images: (B, 3, H, W) in [-1, 1], H and W 16 or more.
        targets: likewise; the error is what the images are beyond them.
        level: 0 to 4; the distance is the sum of absolute differences there.

    Returns:
        The mean over images, in [-1, 1], with a gradient to the network. Of white noise, sums over
        blocks of each of `SCALES` have equal shares in it.
    """
    images = images.detach().requires_grad_()
    with torch.no_grad():
        wanted = _level(network, targets, level)
    distance = (_level(network, images, level) - wanted).abs().sum()
    (gradient,) = torch.autograd.grad(distance, images, create_graph=True)
    return F.cosine_similarity(_sums(gradient), _sums((images - targets).detach())).mean()


def alignments(network: VQGANNetwork, batches: Iterable[Tensor], seed: int) -> list[float]:
    """`alignment` at each level, mean over batches (B, 3, H, W) of images to be `flawed`."""
    found = []
    for step, targets in enumerate(batches):
        images = flawed(targets, step, seed)
        found.append([alignment(network, images, targets, i).item() for i in range(LEVELS)])
    return [round(sum(level) / len(level), 4) for level in zip(*found, strict=True)]


def _level(network: VQGANNetwork, images: Tensor, level: int) -> Tensor:
    return next(islice(network.levels(images), level, None))


def _sums(images: Tensor) -> Tensor:
    """Sums over blocks of every scale, one row an image."""
    sums = [scale**2 * F.avg_pool2d(images, scale).flatten(1) for scale in SCALES]
    return torch.cat(sums, 1)
