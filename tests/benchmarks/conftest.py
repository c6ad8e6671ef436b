"""Networks and an encoder that the tests of the rivals share."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from dckd_losses.encoder import as_encoder
from examples.restoration.backbones import ResidualSR


class Pyramid(nn.Module):
    """The least encoder of five levels."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, x):
        x = self.conv(x).tanh()
        return [F.avg_pool2d(x, 2**i) for i in range(5)], None


@pytest.fixture
def pyramid():
    return as_encoder(Pyramid()).double()


@pytest.fixture
def networks():
    """A student and a wider teacher, both trained a little away from bicubic interpolation."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        pair = [ResidualSR(4, 3, 2), ResidualSR(6, 7, 2)]
        for network in pair:
            nn.init.normal_(network.tail.weight, std=0.01)
    return pair
