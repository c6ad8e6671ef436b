"""Whether an encoder's distances pull at the error."""

import pytest
import torch
import torch.nn.functional as F
from restoration.alignment import alignment, alignments
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


@pytest.mark.parametrize("step", range(MIXED_EVERY))
def test_flawed_images_are_as_far_away_as_students(images, step):
    targets = F.avg_pool2d(images[1], 3, 1, 1)  # with some detail and some smoothness
    errors = torch.cat([flawed(targets, step + MIXED_EVERY * n, 0) - targets for n in range(20)])
    sizes = errors.square().flatten(1).mean(1).sqrt()
    assert (sizes > 0).all()
    assert 0.003 < sizes.median() < 0.1
    assert sizes.max() > 5 * sizes.min()


def test_flaws_are_of_either_sign_whatever_the_image(images):
    targets = images[1]
    errors = torch.stack([flawed(targets, 1 + MIXED_EVERY * n, 0) - targets for n in range(60)])
    directions = F.normalize(errors.flatten(2), dim=2)
    assert directions.mean(0).norm(dim=1).max() < 0.5  # of 1 where they are always the same


def test_flaws_follow_from_step_and_seed(images):
    targets = images[1]
    assert torch.equal(flawed(targets, 1, seed=0), flawed(targets, 1, seed=0))
    assert not torch.equal(flawed(targets, 1, seed=0), flawed(targets, 1, seed=1))
    assert not torch.equal(flawed(targets, 1, seed=0), flawed(targets, 2, seed=0))


def test_it_can_be_trained(images):
    torch.manual_seed(1)
    attention = (False, False, False, False, True)
    network = VQGANNetwork(Architecture(32, (32,) * 5, 1, attention, 8, 8, 16))
    network.requires_grad_(True)
    before = alignments(network, [images[1]], seed=0)
    optimizer = torch.optim.AdamW(network.encoder.parameters(), 1e-3)
    for step in range(12):
        optimizer.zero_grad()
        cosine = alignment(network, flawed(images[1], step, seed=1), images[1], level=4)
        (1 - cosine).backward()
        nn.utils.clip_grad_norm_(network.encoder.parameters(), 1.0)
        optimizer.step()
    after = alignments(network, [images[1]], seed=0)
    assert len(before) == len(after) == 5
    assert after[4] > 1.5 * before[4] > 0
