"""Whether an encoder's distances pull the right way, which is what a loss needs of them.

A loss moves a student's output along the gradient of a distance between features. With random
weights, or weights that were only trained to reconstruct, that gradient is nearly perpendicular to
the error in the image, the more so the deeper the level. Here it is measured, and can be trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor

from dckd_losses.architecture import LEVELS
from dckd_losses.degradations import RandomBlur, RandomMix, RandomResize
from dckd_losses.draws import Draws
from dckd_losses.network import VQGANNetwork

KINDS = (RandomBlur(), RandomResize(), RandomMix())
LEAST_SHARE = 1 / 32  # of a degradation's error: students end close to their teachers


def degraded(images: Tensor, step: int, seed: int) -> Tensor:
    """Images (B, 3, H, W) in [-1, 1], each with a random share of the error of one degradation."""
    draws = Draws(seed, 0, torch.tensor([step], device=images.device))
    kind = KINDS[step % len(KINDS)]
    error = 2 * kind(images / 2 + 0.5, draws) - 1 - images
    return images + LEAST_SHARE ** draws.uniform(len(images), 1, 1, 1) * error


def alignment(network: VQGANNetwork, images: Tensor, targets: Tensor, level: int) -> Tensor:
    """Cosine between the error in images and the gradient of their distance at a level.

    Args:
        network: the encoder, in training.
        images: (B, 3, H, W) in [-1, 1].
        targets: likewise; the error is what the images are beyond them.
        level: 0 to 4; the distance is the sum of absolute differences there.

    Returns:
        The mean over images, in [-1, 1], with a gradient to the network.
    """
    images = images.detach().requires_grad_()
    with torch.no_grad():
        wanted = _level(network, targets, level)
    distance = (_level(network, images, level) - wanted).abs().sum()
    (gradient,) = torch.autograd.grad(distance, images, create_graph=True)
    error = (images - targets).detach()
    return F.cosine_similarity(gradient.flatten(1), error.flatten(1)).mean()


def alignments(network: VQGANNetwork, batches: Iterable[Tensor], seed: int) -> list[float]:
    """`alignment` at each level, mean over batches (B, 3, H, W) of images to be degraded."""
    found = []
    for step, targets in enumerate(batches):
        images = degraded(targets, step, seed)
        found.append([alignment(network, images, targets, i).item() for i in range(LEVELS)])
    return [round(sum(level) / len(level), 4) for level in zip(*found, strict=True)]


def _level(network: VQGANNetwork, images: Tensor, level: int) -> Tensor:
    return next(islice(network.levels(images), level, None))
