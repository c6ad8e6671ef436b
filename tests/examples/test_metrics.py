"""PSNR and SSIM against plain computations that share no code with them."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from restoration.results.metrics import Protocol, protocol, psnr, ssim, to_tensor, to_uint8
from skimage.metrics import structural_similarity

RGB = Protocol(y=None, crop=0, ssim="2d")


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    target = rng.integers(0, 256, (24, 31, 3), dtype=np.uint8)
    noise = rng.integers(-20, 21, target.shape)
    return np.clip(target + noise, 0, 255).astype(np.uint8), target


def luma(image):
    red, green, blue = (image[..., c].astype(np.float64) for c in range(3))
    return (65.481 * red + 128.553 * green + 24.966 * blue) / 255 + 16


def flat(level):
    return np.full((12, 12, 3), level, np.uint8)


def test_protocols_are_those_of_the_papers():
    assert protocol("sr", 4) == Protocol(y="float", crop=4, ssim="2d")
    assert protocol("deblur") == Protocol(y=None, crop=0, ssim="3d")
    assert protocol("derain") == Protocol(y="rounded", crop=0, ssim="2d")
    with pytest.raises(ValueError, match="'dehaze'; expected one of sr, deblur, derain"):
        protocol("dehaze")


def test_psnr_of_known_errors():
    assert psnr(flat(100), flat(101), RGB) == pytest.approx(20 * math.log10(255))
    # One gray level is 219/255 of a luma level, which rounding turns into a whole one here.
    sr = psnr(flat(100), flat(101), protocol("sr"))
    assert sr == pytest.approx(20 * math.log10(255 * 255 / 219))
    assert psnr(flat(100), flat(101), protocol("derain")) == pytest.approx(20 * math.log10(255))


@pytest.mark.parametrize("task", ["sr", "deblur", "derain"])
def test_identical_images(task, images):
    target = images[1]
    assert psnr(target, target, protocol(task)) == math.inf
    assert ssim(target, target, protocol(task)) == pytest.approx(1, abs=1e-12)


def test_the_border_is_left_out(images):
    output, target = images[1].copy(), images[1]
    output[:3], output[-3:], output[:, :3], output[:, -3:] = 0, 0, 0, 0
    assert psnr(output, target, protocol("sr", 3)) == math.inf
    assert ssim(output, target, protocol("sr", 3)) == pytest.approx(1, abs=1e-12)
    assert psnr(output, target, protocol("sr", 2)) < 30


@pytest.mark.parametrize("y", ["float", "rounded", None])
def test_planes_agree_with_plain_psnr_and_scikit_image(y, images):
    x, z = (image.astype(np.float64) if y is None else luma(image)[..., None] for image in images)
    if y == "rounded":
        x, z = np.round(x), np.round(z)
    x, z, seen = x[2:-2, 2:-2], z[2:-2, 2:-2], Protocol(y, 2, "2d")
    decibels = 10 * math.log10(255**2 / np.mean((x - z) ** 2))
    assert psnr(*images, seen) == pytest.approx(decibels, abs=1e-9)
    planes = np.mean([skimage_ssim(x[..., c], z[..., c]) for c in range(x.shape[-1])])
    assert ssim(*images, seen) == pytest.approx(planes, abs=1e-9)


def skimage_ssim(a, b):
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    return structural_similarity(a, b, data_range=255, **options)


def test_ssim_3d_is_one_filter_over_the_volume(images):
    line = torch.exp(-((torch.arange(11, dtype=torch.float64) - 5) ** 2) / (2 * 1.5**2))
    line /= line.sum()
    kernel = torch.einsum("i,j,k->ijk", line, line, line)[None, None]

    def mean(volume):
        return F.conv3d(F.pad(volume[None, None], (5,) * 6, mode="replicate"), kernel)[0, 0]

    x, y = (torch.from_numpy(image.astype(np.float64)) for image in images)
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 2.55**2, 7.65**2
    above = (2 * mx * my + c1) * (2 * vxy + c2)
    expected = (above / ((mx**2 + my**2 + c1) * (vx + vy + c2))).mean().item()
    assert ssim(*images, protocol("deblur")) == pytest.approx(expected, abs=1e-9)
    assert abs(expected - ssim(*images, RGB)) > 1e-5  # planes give another number


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_bad_images_are_named(metric):
    good = flat(0)
    with pytest.raises(ValueError, match=r"output \(12, 11, 3\); expected .* \(12, 12, 3\)"):
        metric(good[:, :11], good, RGB)
    with pytest.raises(ValueError, match=r"float32 \(12, 12, 3\); expected uint8"):
        metric(good.astype(np.float32), good, RGB)
    with pytest.raises(ValueError, match=r"uint8 \(12, 12\); expected uint8 \(H, W, 3\)"):
        metric(good, good[..., 0], RGB)
    with pytest.raises(ValueError, match=r"12x12 pixels.* crop of 6"):
        metric(good, good, protocol("sr", 6))
    assert metric(good[1:, 1:], good[1:, 1:], RGB) >= 1, "one window is enough"
    with pytest.raises(ValueError, match="10x12 pixels; expected 11 a side"):
        ssim(good[2:], good[2:], RGB)


def test_every_level_survives_a_round_trip():
    levels = np.arange(256, dtype=np.uint8).reshape(8, 32, 1).repeat(3, axis=2)
    levels[..., 1] = levels[::-1, ::-1, 1]
    tensor = to_tensor(levels)
    assert tensor.dtype == torch.float32
    assert tensor.shape == (3, 8, 32)
    assert tensor.max() == 1
    np.testing.assert_array_equal(to_uint8(tensor), levels)
    np.testing.assert_array_equal(to_uint8(tensor[None].double()), levels)


def test_to_uint8_clamps_and_rounds():
    tensor = torch.tensor([-0.5, 0.6 / 255, 1.4 / 255, 7.0]).expand(3, 1, 4)
    assert to_uint8(tensor)[0, :, 0].tolist() == [0, 1, 1, 255]


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (torch.zeros(2, 3, 4, 4), r"\(2, 3, 4, 4\); expected floats"),
        (torch.zeros(4, 4, 3), r"\(4, 4, 3\); expected floats \(3, H, W\)"),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), "torch.uint8"),
        (torch.full((3, 4, 4), torch.nan), "NaN"),
    ],
)
def test_to_uint8_refuses(tensor, message):
    with pytest.raises(ValueError, match=message):
        to_uint8(tensor)
