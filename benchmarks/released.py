"""What DCKD's released code computes in a step, as its description goes: the way to compare with.

Seven feature passes, one for each of student, teacher and five negatives, and two full encodings,
one after another; autograd keeps what it keeps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dckd_losses.dcr import EPS, LEVEL_WEIGHTS
from dckd_losses.network import VQGANNetwork


def features(network: VQGANNetwork, images: Tensor) -> list[Tensor]:
    """One feature pass up to the last level's first block."""
    return list(network.levels(images))


def distribution(network: VQGANNetwork, images: Tensor) -> Tensor:
    """One full encoding, and the softmax over all codes' distances, (tokens, K)."""
    *_, last = network.levels(images)
    z = network.latents(last).movedim(1, -1).flatten(0, 2)
    codes = network.quantize.embedding.weight
    distance = z.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * z @ codes.T
    return (distance.amax(1, keepdim=True) - distance).softmax(1)


def loss(
    network: VQGANNetwork,
    student: Tensor,
    teacher: Tensor,
    negatives: Tensor,
    dcr_weight: float,
    dmm_weight: float,
) -> Tensor:
    """Eq. 10's two terms; the true cross-entropy stands in for the doubled softmax."""
    mine, positive = features(network, student), features(network, teacher)
    others = [features(network, images) for images in negatives]
    dcr = student.new_zeros(())
    for level, weight in enumerate(LEVEL_WEIGHTS):
        pull = F.l1_loss(mine[level], positive[level])
        push = torch.stack([other[level] for other in others])
        dcr = dcr + weight * pull / ((mine[level] - push).abs().sum(0).mean() + EPS)
    ours, theirs = distribution(network, student), distribution(network, teacher)
    dmm = -(theirs * ours.clamp_min(1e-38).log()).sum(1).mean()
    return dcr_weight * dcr + dmm_weight * dmm
