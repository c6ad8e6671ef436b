"""What DCKD's released code computes in a step, by its description: the way to compare with.

Seven feature passes, one for each of student, teacher and five negatives, then two full encodings,
one after another; SiLU as a product of two tensors, as taming-transformers writes it. Autograd
keeps what it keeps. Networks are tensors under taming-transformers' names.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = {"dcr_weight": 0.1, "dmm_weight": 1e-3}  # of the released configuration
LEVEL_WEIGHTS, EPS = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1), 1e-7  # likewise
LEVELS, GROUPS, NORM_EPS = 5, 32, 1e-6
Network = Mapping[str, Tensor]


def loss(
    network: Network,
    student: Tensor,
    teacher: Tensor,
    negatives: Tensor,
    dcr_weight: float,
    dmm_weight: float,
) -> Tensor:
    """Eq. 10's two terms of images in the network's range.

    The true cross-entropy stands in for the doubled softmax, so that values and gradients can be
    compared with the library's.
    """
    mine, positive = features(network, student), features(network, teacher)
    others = [features(network, images) for images in negatives]
    dcr = student.new_zeros(())
    for level, weight in enumerate(LEVEL_WEIGHTS):
        pull = (mine[level] - positive[level]).abs().mean()
        push = torch.stack([other[level] for other in others])
        dcr = dcr + weight * pull / ((mine[level] - push).abs().sum(0).mean() + EPS)
    ours, theirs = distances(network, student), distances(network, teacher)
    dmm = -(theirs.softmax(1) * ours.log_softmax(1)).sum(1).mean()
    return dcr_weight * dcr + dmm_weight * dmm


def features(network: Network, images: Tensor) -> list[Tensor]:
    """One feature pass, up to the last level's first block."""
    x, taps = _conv(network, "encoder.conv_in", images, padding=1), []
    for level in range(LEVELS):
        taps.append(_block(network, f"encoder.down.{level}.block.0", x))
        if level < LEVELS - 1:
            x = F.pad(_rest(network, level, taps[-1]), (0, 1, 0, 1))
            x = _conv(network, f"encoder.down.{level}.downsample.conv", x, stride=2)
    return taps


def distances(network: Network, images: Tensor) -> Tensor:
    """One full encoding, and minus the squared distances to all codes, (tokens, K)."""
    x = _rest(network, LEVELS - 1, features(network, images)[-1])
    x = _attention(network, "encoder.mid.attn_1", _block(network, "encoder.mid.block_1", x))
    x = _norm_swish(network, "encoder.norm_out", _block(network, "encoder.mid.block_2", x))
    x = _conv(network, "quant_conv", _conv(network, "encoder.conv_out", x, padding=1))
    z, codes = x.movedim(1, -1).flatten(0, 2), network["quantize.embedding.weight"]
    distance = z.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * z @ codes.T
    return distance.amax(1, keepdim=True) - distance


def _conv(network: Network, name: str, x: Tensor, stride: int = 1, padding: int = 0) -> Tensor:
    return F.conv2d(x, network[f"{name}.weight"], network[f"{name}.bias"], stride, padding)


def _norm(network: Network, name: str, x: Tensor) -> Tensor:
    return F.group_norm(x, GROUPS, network[f"{name}.weight"], network[f"{name}.bias"], NORM_EPS)


def _norm_swish(network: Network, name: str, x: Tensor) -> Tensor:
    x = _norm(network, name, x)
    return x * torch.sigmoid(x)


def _block(network: Network, name: str, x: Tensor) -> Tensor:
    h = _conv(network, f"{name}.conv1", _norm_swish(network, f"{name}.norm1", x), padding=1)
    h = _conv(network, f"{name}.conv2", _norm_swish(network, f"{name}.norm2", h), padding=1)
    wider = f"{name}.nin_shortcut.weight" in network
    return (_conv(network, f"{name}.nin_shortcut", x) if wider else x) + h


def _rest(network: Network, level: int, x: Tensor) -> Tensor:
    """The level after its first block: attention where it has it, and the other blocks."""
    block, number = f"encoder.down.{level}", 0
    while f"{block}.block.{number}.conv1.weight" in network:
        x = _block(network, f"{block}.block.{number}", x) if number else x
        if f"{block}.attn.{number}.q.weight" in network:
            x = _attention(network, f"{block}.attn.{number}", x)
        number += 1
    return x


def _attention(network: Network, name: str, x: Tensor) -> Tensor:
    h = _norm(network, f"{name}.norm", x)
    q, k, v = (_conv(network, f"{name}.{part}", h).flatten(2) for part in "qkv")
    scores = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(2)
    h = (v @ scores.transpose(1, 2)).reshape(x.shape)
    return x + _conv(network, f"{name}.proj_out", h)
