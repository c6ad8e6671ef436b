"""PSNR and SSIM as the papers of each restoration task compute them.

The conventions differ enough to decide comparisons, so a number means nothing without its
`Protocol`: colour or luma, rounded or not, border cropped or not, SSIM on planes or on a volume.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from scipy.ndimage import gaussian_filter  # type: ignore[import-untyped]
from torch import Tensor

from ..data.images import Floats, Image

PEAK = 255.0
SIGMA, RADIUS = 1.5, 5  # a Gaussian of WINDOW pixels: Wang et al. (2004), section III-C
WINDOW = 2 * RADIUS + 1
C1, C2 = (0.01 * PEAK) ** 2, (0.03 * PEAK) ** 2
LUMA = np.array([65.481, 128.553, 24.966]) / PEAK  # BT.601 studio swing, from RGB in [0, 255]


class NotFiniteError(ValueError):
    """A network's output is no image any more."""


@dataclass(frozen=True)
class Protocol:
    """What is compared.

    Attributes:
        y: None compares RGB; "float" the luma of BT.601; "rounded" the same in whole numbers, as
            MATLAB's `rgb2ycbcr` returns it for uint8 images.
        crop: Border left out on each side, in pixels.
        ssim: "2d" averages over planes and takes only whole windows; "3d" filters (H, W, C) as one
            volume with repeated edges, as MATLAB's `ssim` does with an RGB image.
    """

    y: Literal["float", "rounded"] | None
    crop: int
    ssim: Literal["2d", "3d"]

    def __str__(self) -> str:
        plane = {None: "in RGB", "float": "on Y", "rounded": "on Y in whole numbers"}[self.y]
        border = f"without a border of {self.crop} pixels" if self.crop else "border included"
        return f"{plane}, {border}{', SSIM over the volume' if self.ssim == '3d' else ''}"


def protocol(task: str, scale: int = 1) -> Protocol:
    """The protocol of a task's papers: "sr" (with its scale), "deblur" or "derain".

    Sources: BasicSR and SwinIR for "sr"; MATLAB's `psnr` and `ssim` and NAFNet's `ssim3d` for
    "deblur"; `evaluate_PSNR_SSIM.m` of MPRNet and Restormer for "derain".
    """
    protocols = {
        "sr": Protocol(y="float", crop=scale, ssim="2d"),
        "deblur": Protocol(y=None, crop=0, ssim="3d"),
        "derain": Protocol(y="rounded", crop=0, ssim="2d"),
    }
    if task not in protocols:
        raise ValueError(f"got task {task!r}; expected one of {', '.join(protocols)}")
    return protocols[task]


def psnr(output: Image, target: Image, protocol: Protocol) -> float:
    """Peak signal-to-noise ratio in dB of uint8 RGB (H, W, 3); infinite for identical images."""
    x, y = _compared(output, target, protocol, smallest=1)
    error = np.mean((x - y) ** 2)
    return float(10 * np.log10(PEAK**2 / error)) if error else float("inf")


def ssim(output: Image, target: Image, protocol: Protocol) -> float:
    """Structural similarity (Wang et al. 2004) of uint8 RGB (H, W, 3), at most 1."""
    x, y = _compared(output, target, protocol, smallest=WINDOW)
    if protocol.ssim == "3d":
        return float(_ssim_map(x, y).mean())
    inside = slice(RADIUS, -RADIUS)
    planes = (_ssim_map(x[..., c], y[..., c]) for c in range(x.shape[-1]))
    return float(np.mean([plane[inside, inside].mean() for plane in planes]))


def _compared(
    output: Image, target: Image, protocol: Protocol, smallest: int
) -> tuple[Floats, Floats]:
    """Both images as the protocol sees them: float64 (h, w, 3), or (h, w, 1) for luma."""
    for image in (output, target):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] != 3:
            raise ValueError(f"got {image.dtype} {image.shape}; expected uint8 (H, W, 3)")
    if output.shape != target.shape:
        raise ValueError(f"got output {output.shape}; expected target's shape {target.shape}")
    if min(target.shape[:2]) - 2 * protocol.crop < smallest:
        raise ValueError(
            f"got {target.shape[0]}x{target.shape[1]} pixels; expected {smallest} a side "
            f"to be left by a crop of {protocol.crop}"
        )
    return _seen(output, protocol), _seen(target, protocol)


def _seen(image: Image, protocol: Protocol) -> Floats:
    crop = protocol.crop
    seen = image[crop : len(image) - crop, crop : image.shape[1] - crop].astype(np.float64)
    if protocol.y is None:
        return seen
    luma = seen @ LUMA[:, None] + 16.0
    return np.floor(luma + 0.5) if protocol.y == "rounded" else luma


def _ssim_map(x: Floats, y: Floats) -> Floats:
    """SSIM at every position, over all axes of the arrays, edges repeated."""

    def blur(values: Floats) -> Floats:
        blurred: Floats = gaussian_filter(values, SIGMA, truncate=RADIUS / SIGMA, mode="nearest")
        return blurred

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2
    covariance = blur(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + C1) / (mean_x**2 + mean_y**2 + C1)
    return luminance * (2 * covariance + C2) / (var_x + var_y + C2)


def to_uint8(image: Tensor) -> Image:
    """Quantise a restored image, floats (3, H, W) or (1, 3, H, W) in [0, 1], to uint8 (H, W, 3).

    Raises:
        ValueError: Another dtype or shape, or NaN, which uint8 would hide.
    """
    pixels = image.detach().squeeze(0) if image.ndim == 4 else image.detach()
    if pixels.ndim != 3 or len(pixels) != 3 or not pixels.is_floating_point():
        raise ValueError(
            f"got {image.dtype} {tuple(image.shape)}; expected floats (3, H, W) or (1, 3, H, W)"
        )
    if pixels.isnan().any():
        raise NotFiniteError("got NaN in the image; expected values in [0, 1]")
    levels = (pixels.float().clamp(0, 1) * PEAK).round().to("cpu", torch.uint8)
    array: Image = levels.permute(1, 2, 0).contiguous().numpy()
    return array


def to_tensor(image: Image) -> Tensor:
    """The inverse of `to_uint8`: uint8 (H, W, 3) to float32 (3, H, W) in [0, 1]."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float() / PEAK
