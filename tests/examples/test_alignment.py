"""Whether an encoder's distances pull at the error."""

from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from restoration.alignment import SCALES, alignment, alignments
from restoration.flaws import flawed
from torch import Tensor, nn

from dckd_losses.architecture import Architecture
from dckd_losses.network import VQGANNetwork


class Levels:
    """Levels by a function of the image and their number."""

    def __init__(self, function: Callable[[Tensor, int], Tensor]) -> None:
        self.function = function

    def levels(self, images: Tensor) -> Iterator[Tensor]:
        for level in range(5):
            yield self.function(images, level)


@pytest.fixture
def images() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    targets = torch.rand(3, 3, 32, 48) * 2 - 1
    return targets + 0.1 * torch.randn_like(targets), targets


def test_of_pixels_it_is_the_cosine_of_the_error_with_its_sign(images):
    error = images[0] - images[1]
    sign, expected = error.sign(), []
    for scale in SCALES:
        a, b = (F.avg_pool2d(x, scale).flatten(1) for x in (error, sign))
        expected.append(((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean().item())
    for factor in (1, -3):  # features may be of any sign and scale
        network = Levels(lambda x, level, factor=factor: factor * x)
        assert alignment(network, *images, level=2).tolist() == pytest.approx(expected, rel=1e-4)


def test_it_is_of_the_level_that_was_asked_for(images):
    blind = Levels(lambda x, level: x if level == 3 else 0 * x)
    assert alignment(blind, *images, level=3)[0] > 0.7
    assert alignment(blind, *images, level=2).tolist() == [0, 0, 0]


def test_half_the_pixels_pull_less(images):
    whole, half = Levels(lambda x, _: x), Levels(lambda x, _: x[..., ::2])
    ratio = alignment(half, *images, level=0)[0] / alignment(whole, *images, level=0)[0]
    assert ratio.item() == pytest.approx(0.5**0.5, abs=0.02)


def test_features_that_see_brightness_best_follow_the_sign_of_a_shift(images):
    """At the coarsest scale that is still right; at the finest next to nothing of it is."""
    error = (images[0] - images[1]) - (images[0] - images[1]).mean((1, 2, 3), keepdim=True) + 0.01
    flat = Levels(lambda x, _: x + 100 * x.mean((1, 2, 3), keepdim=True))
    fine, _, coarse = alignment(flat, images[1] + error, images[1], level=0)
    assert fine < 0.2 < 0.5 < coarse


def test_it_can_be_trained(images):
    torch.manual_seed(1)
    attention = (False, False, False, False, True)
    network = VQGANNetwork(Architecture(32, (32,) * 5, 1, attention, 8, 8, 16))
    before = alignments(network, [images[1]], seed=0)
    optimizer = torch.optim.AdamW(network.encoder.parameters(), 1e-3)
    for step in range(16):
        optimizer.zero_grad()
        cosines = alignment(network, flawed(images[1], step, seed=1), images[1], level=4)
        (1 - cosines.mean()).backward()
        nn.utils.clip_grad_norm_(network.encoder.parameters(), 1.0)
        optimizer.step()
    after = alignments(network, [images[1]], seed=0)
    assert len(before) == len(after) == 5
    assert after[4] > 1.3 * before[4] > 0
