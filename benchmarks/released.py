"""What DCKD's released code computes in a step, by its description: the way to compare with.

Seven feature passes, one for each of student, teacher and five negatives, then two full encodings,
one after another; SiLU as a product of two tensors, as taming-transformers writes it. Autograd
keeps what it keeps.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dckd_losses.dcr import EPS, LEVEL_WEIGHTS
from dckd_losses.layers import Attention, ResidualBlock, Stage
from dckd_losses.network import VQGANNetwork

WEIGHTS = {"dcr_weight": 0.1, "dmm_weight": 1e-3}  # of the released configuration


def loss(
    network: VQGANNetwork,
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


def features(network: VQGANNetwork, images: Tensor) -> list[Tensor]:
    """One feature pass, up to the last level's first block."""
    stages, x = _stages(network), _conv(network.encoder.conv_in, images)
    taps: list[Tensor] = []
    for stage in stages:
        taps.append(_block(stage.block[0], x))
        if len(taps) < len(stages):
            x = _downsample(stage, _rest(stage, taps[-1]))
    return taps


def distances(network: VQGANNetwork, images: Tensor) -> Tensor:
    """One full encoding, and minus the squared distances to all codes, (tokens, K)."""
    encoder, mid = network.encoder, network.encoder.mid
    x = _rest(_stages(network)[-1], features(network, images)[-1])
    x = _block(mid.block_2, _attention(mid.attn_1, _block(mid.block_1, x)))
    x = _conv(encoder.conv_out, _norm_swish(encoder.norm_out, x))
    z = _conv(network.quant_conv, x).movedim(1, -1).flatten(0, 2)
    codes = network.quantize.embedding.weight
    distance = z.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * z @ codes.T
    return distance.amax(1, keepdim=True) - distance


def _stages(network: VQGANNetwork) -> list[Stage]:
    return list(network.encoder.down)  # type: ignore[arg-type]


def _conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    return F.conv2d(x, conv.weight, conv.bias, conv.stride, conv.padding)


def _norm_swish(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    x = F.group_norm(x, norm.num_groups, norm.weight, norm.bias, norm.eps)
    return x * torch.sigmoid(x)


def _block(block: ResidualBlock, x: Tensor) -> Tensor:
    h = _conv(block.conv1, _norm_swish(block.norm1, x))
    h = _conv(block.conv2, _norm_swish(block.norm2, h))
    return (_conv(block.nin_shortcut, x) if hasattr(block, "nin_shortcut") else x) + h


def _rest(stage: Stage, x: Tensor) -> Tensor:
    for i, block in enumerate(stage.block):
        x = _block(block, x) if i else x
        x = _attention(stage.attn[i], x) if len(stage.attn) else x
    return x


def _attention(attention: Attention, x: Tensor) -> Tensor:
    h = F.group_norm(
        x, attention.norm.num_groups, attention.norm.weight, attention.norm.bias, attention.norm.eps
    )
    q, k, v = (_conv(f, h).flatten(2) for f in (attention.q, attention.k, attention.v))
    scores = (q.transpose(1, 2) @ k * q.shape[1] ** -0.5).softmax(2)
    return x + _conv(attention.proj_out, (v @ scores.transpose(1, 2)).reshape(x.shape))


def _downsample(stage: Stage, x: Tensor) -> Tensor:
    return _conv(stage.downsample.conv, F.pad(x, (0, 1, 0, 1)))
