"""Degradations made here: MATLAB's imresize, by hand and against its files; motion and rain."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from restoration.data.datasets import pairs_from_images
from restoration.data.images import photographs
from restoration.data.synthetic import (
    BLUR_LENGTH,
    camera_motion,
    matlab_bicubic,
    motion_kernel,
    rain,
    streak_kernel,
)
from toys import noise

# Keys' kernel at 1/4, 3/4, 5/4, 7/4 is 111, 29, -9, -3 over 128: amplitudes of 128 stay whole.


def rows(*values):
    """An image with these rows, constant along the other axis."""
    return np.repeat(np.array(values, np.uint8)[:, None], 6, axis=1)


def test_doubling_spreads_an_impulse_over_the_cubic_kernel():
    image = rows(64, 64, 64, 64, 192, 64, 64, 64, 64)
    out = matlab_bicubic(image, 2)
    assert out.shape == (18, 12)
    half = [64, 64, 64, 64, 64, 61, 55, 93, 175]
    assert out[:, 0].tolist() == half + half[::-1]


def test_halving_widens_the_kernel_and_rounds_halves_up():
    image = rows(64, 64, 64, 64, 64, 64, 64, 192, 64, 64, 64, 64, 64, 64, 64, 64)
    # 64 + 128 k / 2 for taps at 1/2, 3/2, 5/2, 7/2: 119.5, 78.5, 59.5, 62.5
    assert matlab_bicubic(image, 1 / 2)[:, 0].tolist() == [64, 64, 60, 120, 79, 63, 64, 64]


def test_borders_are_mirrored_with_the_edge_pixel_repeated():
    # Output 0 sits at 1/2: pixel 0 is also pixel -1, so it weighs (111 + 29) / 256.
    assert matlab_bicubic(rows(200, 72, 72, 72, 72, 72, 72, 72), 1 / 2)[0, 0] == 142


def test_each_pass_is_rounded_and_clipped_to_uint8():
    image = np.zeros((9, 9), np.uint8)
    image[4, 4] = 255
    # Two negative lobes would multiply to 255 (9 / 128)^2 = 1.26; the first pass clips them to 0.
    assert matlab_bicubic(image, 2)[6, 6] == 0


def test_channels_are_independent_and_rows_and_columns_alike():
    image = noise(13, 10)
    out = matlab_bicubic(image, 1 / 3)
    assert out.shape == (5, 4, 3)  # ceil(13 / 3), ceil(10 / 3)
    for channel in range(3):
        np.testing.assert_array_equal(out[..., channel], matlab_bicubic(image[..., channel], 1 / 3))


def test_an_image_narrower_than_the_kernel_keeps_a_constant():
    out = matlab_bicubic(np.full((1, 2), 77, np.uint8), 1 / 4)
    assert out.tolist() == [[77]]


@pytest.mark.parametrize(
    ("image", "scale", "message"),
    [
        (np.zeros((4, 4), np.float32), 2, r"float32 \(4, 4\); expected uint8"),
        (np.zeros(4, np.uint8), 2, r"uint8 \(4,\); expected uint8 \(H, W\)"),
        (np.zeros((0, 4), np.uint8), 2, r"uint8 \(0, 4\)"),
        (np.zeros((4, 4), np.uint8), 0, "scale 0; expected a positive number"),
        (np.zeros((4, 4), np.uint8), float("nan"), "scale nan"),
    ],
)
def test_bad_input_is_named(image, scale, message):
    with pytest.raises(ValueError, match=message):
        matlab_bicubic(image, scale)


@pytest.mark.skipif("DCKD_DATA" not in os.environ, reason="DCKD_DATA (real images) is not set")
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_set5_is_bit_exact_with_matlab(scale):
    root = Path(os.environ["DCKD_DATA"], "sr", "Set5")
    files = sorted((root / "HR").iterdir())
    assert len(files) == 5
    for file in files:
        hr = np.asarray(Pillow.open(file).convert("RGB"))
        height, width = (side // scale * scale for side in hr.shape[:2])
        lr = np.asarray(Pillow.open(root / f"LR_bicubic/X{scale}" / file.name).convert("RGB"))
        np.testing.assert_array_equal(matlab_bicubic(hr[:height, :width], 1 / scale), lr)


DEGRADATIONS = [camera_motion, rain]


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
