"""Whether an encoder's distances pull at the error."""

import pytest
import torch
from restoration.alignment import KINDS, LEAST_SHARE, alignment, alignments, degraded
from torch import Tensor, nn

from dckd_losses.architecture import Architecture
from dckd_losses.network import VQGANNetwork


class Levels:
    """Levels by a function of the image and their number."""

    def __init__(self, function):
        self.function = function

    def levels(self, images: Tensor):
        for level in range(5):
            yield self.function(images, level)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    targets = torch.rand(3, 3, 32, 48) * 2 - 1
    return targets + 0.1 * torch.randn_like(targets), targets


def test_of_pixels_it_is_the_cosine_of_the_error_with_its_sign(images):
    error = images[0] - images[1]
    expected = (error.abs().flatten(1).mean(1) / error.square().flatten(1).mean(1).sqrt()).mean()
    for factor in (1, -3):  # features may be of any sign and scale
        network = Levels(lambda x, level, factor=factor: factor * x)
        assert alignment(network, *images, level=2).item() == pytest.approx(expected.item())


def test_it_is_of_the_level_that_was_asked_for(images):
    blind = Levels(lambda x, level: x if level == 3 else x[..., :1].detach() + 0 * x)
    assert alignment(blind, *images, level=3) > 0.7
    assert alignment(blind, *images, level=2) == 0


def test_half_the_pixels_pull_less(images):
    whole, half = Levels(lambda x, _: x), Levels(lambda x, _: x[..., ::2])
    ratio = alignment(half, *images, level=0) / alignment(whole, *images, level=0)
    assert ratio.item() == pytest.approx(0.5**0.5, abs=0.02)


def test_degraded_images_are_some_of_the_way_to_a_degradation(images):
    targets = images[1]
    seen = [degraded(targets, step, seed=0) for step in range(len(KINDS))]
    for one in seen:
        errors = (one - targets).flatten(1).norm(dim=1)
        assert (errors > 0).all()
        assert (one.abs() <= 1).all()
    assert torch.equal(seen[1], degraded(targets, 1, seed=0))
    assert not torch.equal(seen[1], degraded(targets, 1, seed=1))
    assert not torch.equal(seen[0], degraded(targets, len(KINDS), seed=0))
    assert 0 < LEAST_SHARE < 1


def test_it_can_be_trained(images):
    torch.manual_seed(1)
    attention = (False, False, False, False, True)
    network = VQGANNetwork(Architecture(32, (32,) * 5, 1, attention, 8, 8, 16))
    network.requires_grad_(True)
    before = alignments(network, [images[1]], seed=0)
    optimizer = torch.optim.AdamW(network.encoder.parameters(), 1e-3)
    for step in range(12):
        optimizer.zero_grad()
        cosine = alignment(network, degraded(images[1], step, seed=1), images[1], level=4)
        (1 - cosine).backward()
        nn.utils.clip_grad_norm_(network.encoder.parameters(), 1.0)
        optimizer.step()
    after = alignments(network, [images[1]], seed=0)
    assert len(before) == len(after) == 5
    assert after[4] > before[4] + 0.05
