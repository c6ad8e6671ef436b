"""Errors that encoders learn from."""

import pytest
import torch
import torch.nn.functional as F
from restoration.flaws import MIXED_EVERY, flawed
from torch import Tensor


@pytest.fixture
def images() -> Tensor:
    """With some detail, and some smoothness."""
    torch.manual_seed(0)
    return F.avg_pool2d(torch.rand(3, 3, 32, 48) * 2 - 1, 3, 1, 1)


@pytest.mark.parametrize("step", range(MIXED_EVERY))
def test_they_are_as_large_as_students_are(images: Tensor, step: int) -> None:
    errors = torch.cat([flawed(images, step + MIXED_EVERY * n, 0) - images for n in range(20)])
    sizes = errors.square().flatten(1).mean(1).sqrt()
    assert (sizes > 0).all()
    assert 0.003 < sizes.median() < 0.1
    assert sizes.max() > 5 * sizes.min()


def test_they_cannot_be_guessed_from_the_image(images: Tensor) -> None:
    errors = torch.stack([flawed(images, 1 + MIXED_EVERY * n, 0) - images for n in range(60)])
    directions = F.normalize(errors.flatten(2), dim=2)
    assert directions.mean(0).norm(dim=1).max() < 0.5  # 1 where they are always the same


def test_they_shift_colours_a_little(images: Tensor) -> None:
    errors = torch.cat([flawed(images, 1 + MIXED_EVERY * n, 0) - images for n in range(20)])
    shifts = errors.mean((2, 3)).norm(dim=1) / errors.square().sum(1).mean((1, 2)).sqrt()
    assert 0.005 < shifts.median() < 0.1
    assert shifts.max() < 0.3


def test_they_follow_from_step_and_seed(images: Tensor) -> None:
    assert torch.equal(flawed(images, 1, seed=0), flawed(images, 1, seed=0))
    assert not torch.equal(flawed(images, 1, seed=0), flawed(images, 1, seed=1))
    assert not torch.equal(flawed(images, 1, seed=0), flawed(images, 2, seed=0))
