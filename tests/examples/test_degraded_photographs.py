"""What deblurring and deraining start from by default: camera motion and rain."""

from collections.abc import Callable

import numpy as np
import pytest
from restoration.data.datasets import pairs_from_images
from restoration.data.images import Image, photographs
from restoration.data.synthetic import (
    BLUR_LENGTH,
    camera_motion,
    motion_kernel,
    rain,
    streak_kernel,
)

DEGRADATIONS = [camera_motion, rain]
Degradation = Callable[[Image, np.random.Generator], Image]


@pytest.fixture(scope="module")
def photograph():
    return photographs("held_out")["chelsea"]


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_they_follow_from_the_generator_and_leave_the_image_alone(degradation, photograph):
    before = photograph.copy()
    once, again, other = (degradation(photograph, np.random.default_rng(s)) for s in (1, 1, 2))
    np.testing.assert_array_equal(photograph, before)
    np.testing.assert_array_equal(once, again)
    assert not np.array_equal(once, other)
    assert once.dtype == np.uint8
    assert once.shape == photograph.shape


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_versions_of_an_image_differ_and_have_names_of_their_own(degradation, photograph):
    first, second = pairs_from_images({"cat": photograph}, 1, degradation, versions=2)
    assert (first.name, second.name) == ("cat-0", "cat-1")
    assert not np.array_equal(first.lq, second.lq)
    (alone,) = pairs_from_images({"cat": photograph}, 1, degradation)
    assert alone.name == "cat"
    np.testing.assert_array_equal(alone.lq, first.lq)


def test_motion_moves_nothing_and_keeps_the_light():
    for seed in range(20):
        kernel = motion_kernel(np.random.default_rng(seed))
        assert kernel.shape[0] == kernel.shape[1]
        assert kernel.shape[0] % 2 == 1
        assert kernel.min() >= 0
        assert kernel.sum() == pytest.approx(1)
        places = np.arange(len(kernel)) - len(kernel) // 2
        for axis in (0, 1):
            assert abs(kernel.sum(axis=axis) @ places) < 1e-6  # its centre of mass
        assert (kernel > 0).sum() > 3  # a path, not a point
        assert len(kernel) <= BLUR_LENGTH[1] + 5


def test_motion_blurs_by_its_kernel():
    image = np.zeros((64, 64, 3), np.uint8)
    image[32, 32] = 255
    blurred = camera_motion(image, np.random.default_rng(3)).astype(float)
    kernel = motion_kernel(np.random.default_rng(3))
    radius = len(kernel) // 2
    seen = blurred[32 - radius : 33 + radius, 32 - radius : 33 + radius].mean(axis=2)
    assert np.abs(seen - 255 * kernel).mean() < 1.5  # the noise's deviation is 1
    assert np.corrcoef(seen.ravel(), kernel.ravel())[0, 1] > 0.95
    flat = np.full((64, 64, 3), 100, np.uint8)
    assert abs(camera_motion(flat, np.random.default_rng(0)).mean() - 100) < 0.1


def test_rain_only_adds_light(photograph):
    wet = rain(photograph, np.random.default_rng(0))
    assert (wet >= photograph).all()
    changed = (wet > photograph).any(axis=2).mean()
    assert 0.02 < changed < 0.5


def test_streaks_have_the_angle_and_the_length_they_are_asked_for():
    for angle, length in ((0, 15), (30, 21), (-20, 11)):
        streak = streak_kernel(angle, length)
        assert streak.max() == 1
        assert streak[len(streak) // 2, len(streak) // 2] == 1
        assert streak.sum() == pytest.approx(length, rel=0.08)  # a pixel wide
        rows, columns = np.nonzero(streak > 0.3)
        slope = np.polyfit(rows, columns, 1)[0]
        assert np.rad2deg(np.arctan(slope)) == pytest.approx(angle, abs=3)


def test_rain_differs_in_angle_length_and_density():
    black = np.zeros((96, 96, 3), np.uint8)
    shares = [(rain(black, np.random.default_rng(seed)) > 0).mean() for seed in range(12)]
    assert max(shares) > 2 * min(shares)
