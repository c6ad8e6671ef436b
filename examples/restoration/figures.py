"""Pictures of a finished run: curves, and what the student made beside the others."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from .degrade import Image

mpl.use("agg")
SIZE = 96  # pixels a side of the compared crops
STEP = 16  # grid on which the most telling crop is looked for


def curves(records: Sequence[Mapping[str, float]], baseline: float, path: Path) -> None:
    """Losses and validation PSNR over the steps.

    Args:
        records: of the trainer: `step`, losses by name, now and then `psnr`.
        baseline: PSNR of the degraded input, dB.
        path: PNG to write.
    """
    losses = sorted({name for record in records for name in record} - {"step", "psnr"})
    figure = Figure(figsize=(3.2 * (len(losses) + 1), 2.8), layout="constrained")
    axes = figure.subplots(1, len(losses) + 1)
    for axis, name in zip(axes, [*losses, "psnr"], strict=True):
        points = [(record["step"], record[name]) for record in records if name in record]
        axis.plot(*zip(*points, strict=True), marker="o" if name == "psnr" else None)
        axis.set(title="validation PSNR (dB)" if name == "psnr" else name, xlabel="step")
        axis.grid(alpha=0.3)
        if name == "psnr":
            axis.axhline(baseline, color="gray", linestyle="--", label="bicubic")
            axis.legend()
        elif min(y for _, y in points) > 0:
            axis.set_yscale("log")
    figure.savefig(path, dpi=120)


def side_by_side(images: Sequence[Mapping[str, tuple[Image, float | None]]], path: Path) -> None:
    """One row an image: the crop where the last two columns but the truth differ from the first.

    Args:
        images: for each image its versions by title, first the input's, last the ground truth's,
            each uint8 RGB (H, W, 3) with its PSNR in dB (None for the truth).
        path: PNG to write.
    """
    columns = len(images[0])
    figure = Figure(figsize=(2.3 * columns, 2.5 * len(images)), layout="constrained")
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, versions in zip(axes, images, strict=True):
        pixels = [image for image, _ in versions.values()]
        top, left = telling_crop(pixels[0], pixels[-1])
        for axis, (title, (image, psnr)) in zip(row, versions.items(), strict=True):
            axis.imshow(image[top : top + SIZE, left : left + SIZE], interpolation="nearest")
            axis.set_title(title if psnr is None else f"{title} {psnr:.2f} dB", fontsize=9)
            axis.set_axis_off()
    figure.savefig(path, dpi=120)


def telling_crop(first: Image, truth: Image) -> tuple[int, int]:
    """Top left corner of the crop where the input differs most from the truth."""
    error = np.square(first.astype(float) - truth).sum(2)
    corners = [
        (top, left)
        for top in range(0, max(1, error.shape[0] - SIZE), STEP)
        for left in range(0, max(1, error.shape[1] - SIZE), STEP)
    ]
    return max(corners, key=lambda c: error[c[0] : c[0] + SIZE, c[1] : c[1] + SIZE].sum())
