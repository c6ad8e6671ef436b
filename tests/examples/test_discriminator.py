"""The adversarial term of an encoder's training."""

import pytest
import torch
from restoration.discriminator import Discriminator


@pytest.fixture
def discriminator() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(width=8)


@pytest.mark.parametrize("size", [48, 64, 96])
def test_judges_patches(discriminator: Discriminator, size: int) -> None:
    assert discriminator(torch.rand(2, 3, size, size)).shape == (2, 1, size // 8 - 1, size // 8 - 1)


def test_a_judgement_sees_46_pixels(discriminator: Discriminator) -> None:
    x = torch.rand(1, 3, 96, 96, requires_grad=True)
    discriminator(x)[0, 0, 5, 5].backward()
    assert x.grad is not None
    seen = x.grad.abs().sum((0, 1))
    assert (seen.sum(0) > 0).sum() == (seen.sum(1) > 0).sum() == 46


def test_its_pull_is_as_large_as_an_l1s(discriminator: Discriminator) -> None:
    output, target = torch.rand(2, 3, 48, 48, requires_grad=True), torch.rand(2, 3, 48, 48)
    (of_l1,) = torch.autograd.grad(torch.nn.functional.l1_loss(output, target), output)
    (pull,) = torch.autograd.grad(discriminator.balanced(output), output)
    assert pull.norm().item() == pytest.approx(of_l1.norm().item(), rel=1e-4)
    discriminator.eval()
    assert discriminator(output - 10 * pull).mean() > discriminator(output).mean()
    assert all(parameter.grad is None for parameter in discriminator.parameters())


def test_learns_to_tell_real_from_fake(discriminator: Discriminator) -> None:
    real, fake = torch.rand(4, 3, 48, 48), torch.full((4, 3, 48, 48), 0.5, requires_grad=True)
    optimizer = torch.optim.Adam(discriminator.parameters(), 2e-3)
    first = discriminator.loss(real, fake).item()
    for _ in range(40):
        optimizer.zero_grad()
        loss = discriminator.loss(real, fake)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * first
    assert discriminator(real).mean() > discriminator(fake).mean()
    assert fake.grad is None
