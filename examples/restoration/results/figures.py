"""Pictures of a finished run: curves, and what the student made beside the others."""

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

os.environ["MPLBACKEND"] = "agg"  # no window is opened, and one that is unknown stops the import

from matplotlib.figure import Figure
from torch import nn

from ..data.datasets import Pair
from ..data.images import Image
from .evaluation import enlarged, restore
from .metrics import Protocol, psnr

SIZE = 96  # pixels a side of the compared crops
STEP = 16  # grid on which the most telling crop is looked for
LOG_SPAN = 10  # a loss that changes more than this much is drawn on a logarithmic axis


def curves(records: Sequence[Mapping[str, Any]], levels: Mapping[str, float], path: Path) -> None:
    """Losses, gradient ratio and validation PSNR over the steps: pale as they are, and smoothed.

    Args:
        records: The run's: `step`, numbers by name, now and then `psnr`; lists are left out.
        levels: PSNR in dB by name, drawn as horizontal lines.
        path: PNG to write.
    """
    names = {name for record in records for name, value in record.items() if np.isscalar(value)}
    order = dict.fromkeys(name for record in records for name in record if name in names)
    shown = [name for name in order if name not in ("step", "psnr")]
    figure = Figure(figsize=(3.2 * (len(shown) + 1), 2.8), layout="constrained")
    *axes, psnr_axis = figure.subplots(1, len(shown) + 1)
    for axis, name in zip(axes, shown, strict=True):
        steps, values = _points(records, name)
        axis.plot(steps, values, alpha=0.3, color="C0")
        axis.plot(steps, smoothed(values), color="C0")
        axis.set_title("gradient ratio" if name == "ratio" else f"{name} loss")
        if values and 0 < LOG_SPAN * min(values) < max(values):
            axis.set_yscale("log")
    psnr_axis.plot(*_points(records, "psnr"), label="student", marker="o")
    psnr_axis.set_title("validation PSNR (dB)")
    finite = {name: level for name, level in levels.items() if math.isfinite(level)}
    for style, (name, level) in zip(("--", ":", "-."), finite.items(), strict=False):
        psnr_axis.axhline(level, color="gray", linestyle=style, label=name)
    psnr_axis.legend(fontsize=8)
    for axis in (*axes, psnr_axis):
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    _save(figure, path)


def _points(records: Sequence[Mapping[str, Any]], name: str) -> tuple[list[float], list[float]]:
    """The steps at which something finite was recorded, and its values."""
    there = [record for record in records if math.isfinite(record.get(name, math.nan))]
    return [record["step"] for record in there], [record[name] for record in there]


def smoothed(values: Sequence[float]) -> list[float]:
    """Means over the values around each, as many as a tenth of all, fewer towards the ends."""
    reach = len(values) // 20
    return [
        float(np.mean(values[max(0, at - reach) : at + reach + 1])) for at in range(len(values))
    ]


def side_by_side(
    pairs: Sequence[Pair],
    versions: Mapping[str, Mapping[str, Image]],
    measured: Protocol,
    path: Path,
) -> None:
    """One row a pair: the crop where its first version is farthest from the ground truth.

    Args:
        pairs: Names and ground truths, uint8 RGB (H, W, 3).
        versions: By title, the images that stand beside the ground truth, by name; the input first.
        measured: What the PSNR above each image is measured on.
        path: PNG to write.
    """
    columns = len(versions) + 1
    figure = Figure(figsize=(2.4 * columns, 2.6 * len(pairs)), layout="constrained")
    axes = figure.subplots(len(pairs), columns, squeeze=False)
    for row, (name, _, truth) in zip(axes, pairs, strict=True):
        shown = {
            f"{title}, {psnr(images[name], truth, measured):.2f} dB": images[name]
            for title, images in versions.items()
        }
        top, left = telling_crop(next(iter(shown.values())), truth)
        shown["ground truth"] = truth
        for axis, (title, image) in zip(row, shown.items(), strict=True):
            axis.imshow(image[top : top + SIZE, left : left + SIZE], interpolation="nearest")
            axis.set_title(title, fontsize=10)
            axis.set(xticks=[], yticks=[])
        name = name.encode(errors="backslashreplace").decode()  # bytes that are no text
        name = name if len(name) <= 24 else f"...{name[-21:]}"
        row[0].set_ylabel(name, fontsize=10, parse_math=False)
    _save(figure, path)


def sample(pairs: Sequence[Pair], scale: int) -> Callable[[nn.Module], Image]:
    """What a network makes of the first pair, between the degraded image and the ground truth."""

    def restored(model: nn.Module) -> Image:
        _, lq, hq = pairs[0]
        images = (enlarged(lq, scale), restore(model, lq), hq)
        top, left = telling_crop(images[0], hq)
        return np.hstack([image[top : top + SIZE, left : left + SIZE] for image in images])

    return restored


def _save(figure: Figure, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # letters that the font has not, which become boxes
        figure.savefig(path, dpi=120)


def telling_crop(first: Image, last: Image) -> tuple[int, int]:
    """Top left corner of the crop, SIZE pixels a side, where two images differ most."""
    error = np.square(first.astype(float) - last).sum(2)
    corners = [
        (top, left)
        for top in range(0, max(1, error.shape[0] - SIZE + 1), STEP)
        for left in range(0, max(1, error.shape[1] - SIZE + 1), STEP)
    ]
    return max(corners, key=lambda c: float(error[c[0] : c[0] + SIZE, c[1] : c[1] + SIZE].sum()))
