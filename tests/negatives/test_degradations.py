"""Blur, noise, resize and mix: shapes, ranges, distributions, and torch's own resampling."""

import pytest
import torch
import torch.nn.functional as F

from dckd_losses.negatives.degradations import (
    DEGRADATIONS,
    Degradation,
    RandomBlur,
    RandomMix,
    RandomNoise,
    RandomResize,
    resize_matrix,
)
from dckd_losses.negatives.draws import Draws

ALL = sorted(DEGRADATIONS)


def draws(counter=0, seed=0):
    return Draws(seed, 0, torch.tensor(counter))


def photograph(batch=2, height=24, width=31):
    """Smooth image-like content within [0.2, 0.8]."""
    y, x = torch.meshgrid(torch.arange(height) / 5, torch.arange(width) / 7, indexing="ij")
    channels = [0.5 + 0.3 * torch.sin(y * (c + 1) + x) for c in range(3)]
    return torch.stack(channels).expand(batch, -1, -1, -1).contiguous()


@pytest.mark.parametrize("name", ALL)
def test_changes_every_image_its_own_way(name):
    lq = photograph(8)
    seen = DEGRADATIONS[name]()(lq, draws())
    changes = (seen - lq).flatten(1).abs().mean(1)
    assert (changes > 0).all()
    assert len(changes.unique()) == 8


def test_noise_has_the_released_distribution():
    lq = torch.full((400, 3, 32, 32), 0.5)
    noise = RandomNoise()(lq, draws()) - lq
    gray = (noise[:, 0] == noise[:, 1]).flatten(1).all(1)
    assert 0.42 < gray.float().mean() < 0.58
    sigma = noise.flatten(2).std(2)
    sigma = sigma.mean(1) * 255
    assert 0.8 < sigma.min() < 2.5 and 28 < sigma.max() < 31.5
    assert 14.5 < sigma.mean() < 16.5
    colour = noise[~gray]
    pair = torch.stack([colour[:, 0].flatten(), colour[:, 1].flatten()])
    assert abs(torch.corrcoef(pair)[0, 1]) < 0.02
    patterns = noise[gray][:2, 0] / noise[gray][:2, 0].flatten(1).std(1)[:, None, None]
    assert not torch.allclose(patterns[0], patterns[1], atol=0.5), "a pattern for each image"


def test_noise_is_clipped():
    seen = RandomNoise((0.5, 0.5))(torch.rand(4, 3, 16, 16), draws())
    assert seen.min() == 0 and seen.max() == 1


def test_blur_of_a_point_is_its_kernel():
    lq = torch.zeros(200, 3, 25, 25)
    lq[:, :, 12, 12] = 1
    seen = RandomBlur()(lq, draws())
    torch.testing.assert_close(seen.sum((2, 3)), torch.ones(200, 3))
    torch.testing.assert_close(seen, seen.flip(2).flip(3))
    assert not torch.allclose(seen, seen.transpose(2, 3)), "each axis on its own"
    reach = (seen[:, 0].sum(1) > 0).sum(1)
    assert set(reach.tolist()) <= {1, 3, 5, 7, 9, 11}
    assert reach.max() == 11
    rank_one = seen[:, 0].sum(2)[:, :, None] * seen[:, 0].sum(1)[:, None, :]
    torch.testing.assert_close(seen[:, 0], rank_one)


def test_blur_is_gaussian_within_its_kernel():
    lq = torch.zeros(1, 3, 25, 25)
    lq[:, :, 12, 12] = 1
    seen = RandomBlur(sizes=(7,), sigma=(1.5, 1.5))(lq, draws())[0, 0].sum(0)
    taps = torch.exp(-0.5 * (torch.arange(-3, 4) / 1.5) ** 2)
    torch.testing.assert_close(seen[9:16], taps / taps.sum())
    assert not seen[:9].any() and not seen[16:].any()


@pytest.mark.parametrize("size", [(24, 31), (6, 6)])
def test_blur_reflects_at_borders(size):
    lq = torch.rand(1, 3, *size)
    seen = RandomBlur(sizes=(11,), sigma=(2.0, 2.0))(lq, draws())
    taps = torch.exp(-0.5 * (torch.arange(-5, 6) / 2) ** 2)
    taps = taps / taps.sum()
    weight = (taps[:, None] * taps)[None, None].expand(3, -1, -1, -1)
    expected = F.conv2d(F.pad(lq, (5, 5, 5, 5), mode="reflect"), weight, groups=3)
    torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("mode", "name"), [(0, "area"), (1, "bilinear"), (2, "bicubic")])
@pytest.mark.parametrize(("source", "target"), [(17, 11), (17, 25), (17, 17), (5, 3), (1, 2)])
def test_resize_matrix_equals_torch(mode, name, source, target):
    x = torch.rand(1, 1, source, source)
    matrix = resize_matrix(
        torch.tensor([source, 9]), torch.tensor([target, 9]), 17, 25, torch.tensor([mode, 1])
    )
    assert matrix.shape == (2, 25, 17)
    seen = matrix[0, :target, :source] @ x @ matrix[0, :target, :source].T
    expected = F.interpolate(x, size=(target, target), mode=name)
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-5)
    assert not matrix[0, :target, source:].any()
    torch.testing.assert_close(matrix.sum(2), torch.ones(2, 25))


class Mark(Degradation):
    """Leaves a number on each image that has been through it, and its call in a list."""

    def __init__(self, value, calls=None):
        self.value, self.calls = value, [] if calls is None else calls

    def __call__(self, images, draws):
        self.calls.append(self.value)
        return images + self.value


def test_mix_applies_a_random_subset_but_never_none():
    mix = RandomMix(Mark(1), Mark(10), Mark(100))
    seen = mix(torch.zeros(7000, 3, 2, 2), draws())[:, 0, 0, 0]
    values, counts = seen.unique(return_counts=True)
    assert values.tolist() == [1, 10, 11, 100, 101, 110, 111]
    assert counts.min() > 850 and counts.max() < 1150


def test_mix_goes_blur_resize_noise():
    order = []
    RandomMix(*(Mark(value, order) for value in (1, 2, 3)))(torch.zeros(1, 3, 2, 2), draws())
    assert order == [1, 2, 3]


def test_compiles_without_a_break():
    degrade, lq = RandomMix(), photograph()  # which has all the others in it

    def run(lq, counter):
        return degrade(lq, Draws(0, 0, counter))

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    counter = torch.tensor(5)
    torch.testing.assert_close(compiled(lq, counter), run(lq, counter))


def test_released_ranges():
    noise, blur, resize = RandomNoise(), RandomBlur(), RandomResize()
    assert (noise.sigma, noise.gray) == ((1 / 255, 30 / 255), 0.5)
    assert (blur.sizes, blur.sigma) == ((3, 5, 7, 9, 11), (0.1, 2.0))
    assert (resize.up, resize.down, resize.up_probability) == ((1.0, 1.5), (0.5, 1.0), 0.25)


def test_blur_covers_its_range_of_sigma():
    """A point blurred by the widest kernel: the centre's share says how wide."""
    lq = torch.zeros(2000, 3, 25, 25)
    lq[:, :, 12, 12] = 1
    peak = RandomBlur(sizes=(11,))(lq, draws())[:, 0].sum(2)[:, 12]
    narrow, wide = (torch.exp(-0.5 * (torch.arange(-5, 6) / s) ** 2) for s in (0.1, 2.0))
    assert 0.99 < peak.max() <= 1 / narrow.sum() + 1e-5
    assert 1 / wide.sum() - 1e-5 <= peak.min() < 1 / wide.sum() + 0.01


def test_resize_factors_cover_their_ranges(monkeypatch):
    seen = []

    def spy(source, target, *rest):
        seen.append((source, target, rest[-1]))
        return resize_matrix(source, target, *rest)

    monkeypatch.setattr("dckd_losses.negatives.degradations.resize_matrix", spy)
    RandomResize()(torch.rand(4000, 3, 40, 2), draws())
    small, mode = next((t, m) for source, t, m in seen if (source == 40).all())
    assert 0.73 < (small < 40).float().mean() + (small == 40).float().mean() / 2 < 0.77
    assert (small.min(), small.max()) == (20, 60)
    assert mode.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize("name", ALL)
def test_degradations_are_unchanged_under_autocast(name, images):
    degrade, lq = DEGRADATIONS[name](), images(2, 3, 12, 12)
    expected = degrade(lq, draws())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(degrade(lq, draws()), expected)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (RandomNoise, {"sigma": 15}, r"sigma must be a range \(low, high\), got 15"),
        (
            RandomNoise,
            {"sigma": (0.2, 0.1)},
            "sigma's high must be finite and at least 0.2, got 0.1",
        ),
        (RandomNoise, {"sigma": ("1e-3", 0.1)}, "sigma's low must be a number.* as text"),
        (RandomNoise, {"gray": 2}, "gray must be at least 0 and at most 1, got 2"),
        (RandomBlur, {"sizes": (4,)}, r"sizes must be odd numbers.*, got \(4,\)"),
        (RandomBlur, {"sizes": (3, 4.0)}, "sizes must be odd"),
        (RandomBlur, {"sizes": ()}, "sizes must be odd"),
        (RandomBlur, {"sizes": 5}, "sizes must be odd numbers.*, got 5"),
        (RandomBlur, {"sigma": (0, 1)}, "sigma's low must be finite and above 0, got 0"),
        (RandomResize, {"up": (1, 2, 3)}, "up must be a range"),
        (RandomResize, {"down": (0.0, 1)}, "down's low must be finite and above 0"),
        (RandomResize, {"up_probability": -1}, "up_probability must be at least 0"),
    ],
)
def test_refuses_settings(kind, arguments, message):
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_noise_may_be_none():
    lq = photograph()
    assert torch.equal(RandomNoise(sigma=(0, 0))(lq, draws()), lq.clamp(0, 1))
