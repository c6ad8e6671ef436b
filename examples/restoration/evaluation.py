"""Restore images with a network and score them by the super-resolution protocol."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypedDict

import torch
from PIL import Image as Pillow
from torch import nn

from .data import Pair
from .degrade import Image, matlab_bicubic
from .metrics import protocol, psnr, ssim, to_tensor, to_uint8


class Score(TypedDict):
    """PSNR in dB and SSIM."""

    psnr: float
    ssim: float


class Scores(Score):
    """The means over a data set, and each image's own."""

    images: dict[str, Score]


def restore(model: nn.Module, lq: Image) -> Image:
    """Run a network on one image, uint8 RGB (H, W, 3), whole and without gradient.

    The network runs in eval mode, on its own device and in its own dtype; its modes are put back.
    """
    weight = next(model.parameters())
    with torch.no_grad(), _evaluating(model):
        return to_uint8(model(to_tensor(lq)[None].to(weight)))


def evaluate(
    model: nn.Module | None, pairs: Iterable[Pair], scale: int, save_images: Path | None = None
) -> Scores:
    """Score a network on a data set: luma PSNR and SSIM without a border of `scale` pixels.

    Args:
        model: (1, 3, H, W) in [0, 1] to `scale` times that size; None for MATLAB's bicubic.
        pairs: The data set.
        scale: HR size over LR size.
        save_images: Folder for the restored images, as PNG.

    Raises:
        ValueError: For no pairs, or an output without the ground truth's size.
    """
    rules = protocol("sr", scale)
    images: dict[str, Score] = {}
    for name, lq, hq in pairs:
        output = restore(model, lq) if model else matlab_bicubic(lq, scale)
        images[name] = {"psnr": psnr(output, hq, rules), "ssim": ssim(output, hq, rules)}
        if save_images:
            _write(output, save_images / f"{name}.png")
    if not images:
        raise ValueError("got no pairs to evaluate; expected at least one")
    scores = images.values()
    return {
        "psnr": sum(score["psnr"] for score in scores) / len(scores),
        "ssim": sum(score["ssim"] for score in scores) / len(scores),
        "images": images,
    }


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while; `model.train()` afterwards would wake modules frozen in eval mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _write(image: Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Pillow.fromarray(image).save(path)
