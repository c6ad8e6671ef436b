"""How good a network is on a set of images, by its task's protocol."""

from __future__ import annotations

from torch import nn

from benchmarks.tables.sets import ImageSet
from examples.restoration.data import Pair
from examples.restoration.degrade import Image, matlab_bicubic
from examples.restoration.evaluation import Score, restore
from examples.restoration.metrics import protocol, psnr, ssim


def restored(model: nn.Module | None, pair: Pair, scale: int) -> Image:
    """What a network makes of an input; None for the input itself, enlarged by MATLAB's bicubic."""
    if model is not None:
        return restore(model, pair.lq)
    return pair.lq if scale == 1 else matlab_bicubic(pair.lq, scale)


def score(model: nn.Module | None, images: ImageSet, task: str, scale: int) -> Score:
    """Mean PSNR and SSIM of a network over a set."""
    rules = protocol(task, scale)
    made = [(restored(model, pair, scale), pair.hq) for pair in images.pairs]
    return {
        "psnr": sum(psnr(mine, true, rules) for mine, true in made) / len(made),
        "ssim": sum(ssim(mine, true, rules) for mine, true in made) / len(made),
    }


def mean_psnr(model: nn.Module, images: ImageSet, task: str, scale: int) -> float:
    """The same without SSIM, which takes longer."""
    rules = protocol(task, scale)
    values = [psnr(restored(model, pair, scale), pair.hq, rules) for pair in images.pairs]
    return sum(values) / len(values)
