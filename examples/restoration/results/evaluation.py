"""Restore images with a network and score them by their task's protocol."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean
from typing import TypedDict

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from ..data.datasets import Pair
from ..data.images import Image, write_png
from ..data.synthetic import matlab_bicubic
from ..training.checkpoint import write_whole
from ..training.console import RefusedError
from .metrics import protocol, psnr, ssim, to_tensor, to_uint8

OVERLAP = 32  # pixels that a tile sees beyond what is kept of it
UNIT = 8  # of which tiles begin at multiples: SwinIR's windows lie as in the whole image
PICTURES = 4  # images that are shown at most
MULTIPLES = (1, 2, 4, 8, 16, 32, 64, 128)  # of which networks may need their images' sides


class Score(TypedDict):
    """PSNR in dB and SSIM."""

    psnr: float
    ssim: float


class Scores(Score):
    """The means over a data set, and each image's own."""

    images: dict[str, Score]


def restore(model: nn.Module, lq: Image, tile: int | None = None) -> Image:
    """Run a network on one image, uint8 RGB (H, W, 3), without gradient.

    The network runs in eval mode, on its own device and in its own dtype; its modes are put back.
    `tile` is the side in pixels, a multiple of 8, of the parts in which a large image is restored.

    Raises:
        RefusedError: The network fails on this image.
    """
    if tile is not None and (tile < UNIT or tile % UNIT):
        raise ValueError(f"got tile {tile}; expected a multiple of {UNIT}")
    weight = next(model.parameters(), torch.zeros(()))
    with torch.no_grad(), _evaluating(model):
        image = to_tensor(lq)[None].to(weight)
        return to_uint8(_padded(model, image) if tile is None else _tiled(model, image, tile))


def _padded(model: nn.Module, image: Tensor) -> Tensor:
    """Run a network; where it fails on this size, with the border repeated up to multiples."""
    height, width = image.shape[-2:]
    said = ""
    for multiple in MULTIPLES:
        padding = (0, -width % multiple, 0, -height % multiple)
        try:
            padded = F.pad(image, padding, mode="replicate") if any(padding) else image
            made: Tensor = model(padded)
            scale = made.shape[-1] // padded.shape[-1]
            if scale and made.shape[-2:] == tuple(scale * side for side in padded.shape[-2:]):
                return made[..., : scale * height, : scale * width]
            failed = f"it makes {tuple(made.shape)} of {tuple(padded.shape)}"
        except (torch.OutOfMemoryError, MemoryError):
            raise
        except Exception as error:  # the user's code may raise anything
            failed = " ".join(f"{type(error).__name__}: {error}".split())
        said = said or failed
    raise RefusedError(f"the network cannot restore an image of {width}x{height} pixels: {said}")


def _tiled(model: nn.Module, image: Tensor, tile: int) -> Tensor:
    """Restore tile by tile, each with what lies around it."""
    rows = []
    for top in range(0, image.shape[-2], tile):
        row = []
        for left in range(0, image.shape[-1], tile):
            first, before = max(0, top - OVERLAP), max(0, left - OVERLAP)
            seen = image[..., first : top + tile + OVERLAP, before : left + tile + OVERLAP]
            made = _padded(model, seen)
            scale = made.shape[-1] // seen.shape[-1]
            y, x = (top - first) * scale, (left - before) * scale
            row.append(made[..., y : y + tile * scale, x : x + tile * scale])
        rows.append(torch.cat(row, dim=-1))
    return torch.cat(rows, dim=-2)


def enlarged(lq: Image, scale: int) -> Image:
    """What restores nothing: MATLAB's bicubic, and for scale 1 the image itself."""
    return lq if scale == 1 else matlab_bicubic(lq, scale)


def evaluate(
    model: nn.Module | None,
    pairs: Iterable[Pair],
    scale: int,
    *,
    task: str = "sr",
    tile: int | None = None,
    folder: Path | None = None,
    shown: dict[str, Image] | None = None,
) -> Scores:
    """Score a network, or the images as they are, as the papers of a task do: `metrics.protocol`.

    Args:
        model: (1, 3, H, W) in [0, 1] to `scale` times that size; None for the images
            as they are, `enlarged`.
        pairs: The data set.
        scale: HR size over LR size; 1 for deblurring and deraining.
        task: "sr", "deblur" or "derain".
        tile: As in `restore`.
        folder: Where restored images are written, if at all.
        shown: Gets the first restored images by name, to be drawn.
    """
    rules = protocol(task, scale)
    images: dict[str, Score] = {}
    for name, lq, hq in pairs:
        output = restore(model, lq, tile) if model else enlarged(lq, scale)
        images[name] = {"psnr": psnr(output, hq, rules), "ssim": ssim(output, hq, rules)}
        if folder:
            write_png(output, folder / f"{name}.png")
        if shown is not None and len(shown) < PICTURES:
            shown.setdefault(name, output)  # names of later sets may be equal
    if not images:
        raise ValueError("got no pairs to evaluate; expected at least one")
    return {**mean(images.values()), "images": images}


def mean(scores: Iterable[Score]) -> Score:
    """The mean of both numbers."""
    psnrs, ssims = zip(*((score["psnr"], score["ssim"]) for score in scores), strict=True)
    return {"psnr": fmean(psnrs), "ssim": fmean(ssims)}


def table(rows: Sequence[Sequence[str | Score]]) -> str:
    """Columns, the first one flush left; of scores PSNR and SSIM."""

    def text(cell: str | Score) -> str:
        return cell if isinstance(cell, str) else f"{cell['psnr']:.2f} / {cell['ssim']:.4f}"

    texts = [[text(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in texts
    )


def write_json(path: Path, content: object) -> None:
    """Write JSON; a number that is not finite, as the PSNR of identical images, becomes null."""
    standard = json.loads(json.dumps(content), parse_constant=lambda name: None)
    write_whole(path, f"{json.dumps(standard, indent=2)}\n".encode())


def validation(
    pairs: Sequence[Pair], task: str, scale: int, accelerator: Accelerator
) -> Callable[[nn.Module], float]:
    """Mean PSNR of a network, to be called in every process: each takes its share of the images."""
    mine = range(accelerator.process_index, len(pairs), accelerator.num_processes)
    rules = protocol(task, scale)

    def mean_psnr(model: nn.Module) -> float:
        read = (pairs[index] for index in mine)
        decibels = [psnr(restore(model, lq), hq, rules) for _, lq, hq in read]
        total = torch.tensor(float(sum(decibels)), device=accelerator.device)
        return float(accelerator.reduce(total)) / len(pairs)

    return mean_psnr


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
