"""What tells photographs from reconstructions: VQGAN's adversarial term (Esser et al. 2021).

Its weight adapts as theirs does, but at the reconstruction rather than at the decoder's last layer:
there the size of an L1's gradient is known without another backward pass.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Discriminator(nn.Sequential):
    """Judges overlapping patches of 46 pixels a side (Isola et al. 2017); has spectral norms.

    Args:
        width: channels of the first layer; the others have twice and four times as many.

    Shape:
        images (B, 3, H, W) in [-1, 1] to (B, 1, H / 8 - 1, W / 8 - 1), above 0 for photographs.
    """

    def __init__(self, width: int = 32) -> None:
        layers: list[nn.Module] = []
        for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [_conv(inputs, outputs, stride=2), nn.LeakyReLU(0.2)]
        super().__init__(*layers, _conv(4 * width, 1, stride=1))

    def loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """The hinge loss that the discriminator is trained with."""
        return F.relu(1 - self(real)).mean() + F.relu(1 + self(fake.detach())).mean()

    def balanced(self, fake: Tensor) -> Tensor:
        """What reconstructions are trained with: a gradient at them as large as a mean L1's."""
        judged = fake.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(-self(judged).mean(), judged)
        of_l1 = gradient.numel() ** -0.5
        return (fake * gradient).sum() * (of_l1 / (gradient.norm() + 1e-12))


def _conv(inputs: int, outputs: int, stride: int) -> nn.Module:
    return spectral_norm(nn.Conv2d(inputs, outputs, 4, stride, padding=1))
