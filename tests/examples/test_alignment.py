"""Whether an encoder's distances pull at the error."""

from collections.abc import Callable, Iterator

import pytest
import torch
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


def sums(images: Tensor) -> Tensor:
    blocks = [images.unfold(2, n, n).unfold(3, n, n).sum((4, 5)).flatten(1) for n in SCALES]
    return torch.cat(blocks, 1)


def test_of_pixels_it_is_the_cosine_of_the_error_with_its_sign(images):
    error = images[0] - images[1]
    a, b = sums(error), sums(error.sign())
    expected = ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))).mean().item()
    for factor in (1, -3):  # features may be of any sign and scale
        network = Levels(lambda x, level, factor=factor: factor * x)
        assert alignment(network, *images, level=2).item() == pytest.approx(expected, rel=1e-4)


def test_it_is_of_the_level_that_was_asked_for(images):
    blind = Levels(lambda x, level: x if level == 3 else 0 * x)
    assert alignment(blind, *images, level=3) > 0.7
    assert alignment(blind, *images, level=2) == 0


def test_sums_over_blocks_of_white_noise_have_equal_shares(images):
    blocks = sums(images[0] - images[1])
    counts = [(32 // n) * (48 // n) * 3 for n in SCALES]
    sizes = [part.square().sum(1).mean().sqrt() for part in blocks.split(counts, 1)]
    assert max(sizes) < 1.5 * min(sizes)


def test_features_that_see_brightness_best_follow_the_sign_of_a_shift(images):
    even = images[0] - images[1] - (images[0] - images[1]).mean((1, 2, 3), keepdim=True)
    seen = []
    for weight in (0, 100):
        network = Levels(lambda x, _, w=weight: x + w * x.mean((1, 2, 3), keepdim=True))
        seen.append(alignment(network, images[1] + even + 0.002, images[1], level=0).item())
    assert seen[1] < 0.3 < 0.6 < seen[0]


def test_it_can_be_trained(images):
    torch.manual_seed(1)
    attention = (False, False, False, False, True)
    network = VQGANNetwork(Architecture(32, (32,) * 5, 1, attention, 8, 8, 16))
    before = alignments(network, [images[1]] * 8, seed=0)
    optimizer = torch.optim.AdamW(network.encoder.parameters(), 1e-3)
    for step in range(16):
        optimizer.zero_grad()
        cosine = alignment(network, flawed(images[1], step, seed=1), images[1], level=4)
        (1 - cosine).backward()
        nn.utils.clip_grad_norm_(network.encoder.parameters(), 1.0)
        optimizer.step()
    after = alignments(network, [images[1]] * 8, seed=0)
    assert len(before) == len(after) == 5
    assert after[4] > 1.5 * before[4] > 0
