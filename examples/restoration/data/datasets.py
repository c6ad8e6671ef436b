"""Pairs of a low-quality image and its ground truth, in memory or in files."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from ..results.metrics import WINDOW, Protocol, protocol
from .images import BadImageError, Image, image_size, read_image
from .layouts import Files, find_images, find_pairs, has_pairs, sets_in
from .synthetic import matlab_bicubic

MEMORY = 4.0  # gigabytes of pixels up to which a data set is kept in memory: see benchmarks.loading

T = TypeVar("T")
Degradation: TypeAlias = Callable[[Image, np.random.Generator], Image]


class Pair(NamedTuple):
    """A low-quality image and its ground truth, uint8 RGB: (h, w, 3) and (h s, w s, 3)."""

    name: str
    lq: Image
    hq: Image


def pairs_from_images(
    images: Mapping[str, Image],
    scale: int,
    degradation: Degradation | None = None,
    *,
    versions: int = 1,
) -> list[Pair]:
    """Make low-quality versions of images by name, uint8 RGB (H, W, 3).

    Args:
        images: Cropped to whole LR pixels.
        scale: HR size over LR size.
        degradation: What makes them, of the same size; None for MATLAB's bicubic by the scale.
        versions: Of each image. What one draws follows from its number.
    """
    return [
        _paired(
            f"{name}-{version}" if versions > 1 else name,
            hq,
            None,
            scale,
            degradation,
            (version, index),
        )
        for version in range(versions)
        for index, (name, hq) in enumerate(images.items())
    ]


def load_pairs(
    folder: str | Path,
    scale: int,
    *,
    skip_bad: bool = False,
    degradation: Degradation | None = None,
) -> list[Pair]:
    """Load a data set of one of the layouts in `layouts` into memory, as uint8.

    Args:
        folder: The data set. LR is made by MATLAB's bicubic where there is none.
        scale: HR size over LR size, to which HR is cropped; 1 for pairs of one size.
        skip_bad: Leave out unreadable files, with a warning on stderr, instead of stopping.
        degradation: For scale 1: what makes pairs of a folder that holds none but images.

    Raises:
        BadImageError: A file is unreadable.
        ValueError: As `layouts.find_pairs`, or for sizes that do not fit the scale.
    """
    return _load(_find(Path(folder), scale, degradation), scale, skip_bad, degradation)


class PairFiles(Sequence[Pair]):
    """The pairs of a data set, each read from its files whenever it is asked for.

    Attributes:
        sizes: Height and width of each low-quality image, by the headers.
    """

    def __init__(
        self, files: Sequence[Files], scale: int, degradation: Degradation | None = None
    ) -> None:
        self.files, self.scale, self.degradation = files, scale, degradation
        sides = (image_size(hq) for _, hq, _ in files)
        self.sizes = [(height // scale, width // scale) for height, width in sides]

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        """Read a pair."""
        return _read(self.files[index], self.scale, self.degradation, index)


def open_pairs(
    folder: str | Path,
    scale: int,
    *,
    skip_bad: bool = False,
    degradation: Degradation | None = None,
    memory: float = MEMORY,
    scored: Protocol | None = None,
) -> Sequence[Pair]:
    """A data set by `load_pairs` if its pixels take so many gigabytes at most, else `PairFiles`.

    `scored` is the protocol of a set that is held out, and chosen as by `layouts.find_pairs`. Its
    images have to be large enough for SSIM; ValueError names one that is not.
    """
    found = _find(Path(folder), scale, degradation, held_out=scored is not None)
    headers = list(_readable(found, lambda i: (found[i], image_size(found[i].hq)), skip_bad))
    if scored is not None:
        for file, size in headers:
            _check_scored(file.hq, size, scale, scored.crop)
    files = PairFiles([file for file, _ in headers], scale, degradation)
    if 3 * (1 + scale**2) * sum(h * w for h, w in files.sizes) > memory * 1e9:
        return files
    return _load(found, scale, skip_bad, degradation)


def _check_scored(path: Path, size: tuple[int, int], scale: int, border: int) -> None:
    """Require an image that leaves a window of SSIM inside its border."""
    least = -(-(WINDOW + 2 * border) // scale) * scale  # it is cropped to whole LR pixels
    if min(size) < least:
        inside = f" inside a border of {border}" if border else ""
        raise ValueError(
            f"{path}: {size[1]}x{size[0]} pixels; scoring needs {least}x{least} or more "
            f"(SSIM takes {WINDOW}x{WINDOW}{inside})"
        )


def open_sets(
    folders: Sequence[Path], task: str, scale: int, **reading: Any
) -> dict[str, Sequence[Pair]]:
    """Sets to be scored, by their folders' names; Rain13K's five tests are five."""
    sets = [each for folder in folders for each in sets_in(folder)]
    names = [folder.resolve().name for folder in sets]
    if len(set(names)) < len(names):
        raise ValueError(f"got --val folders {', '.join(names)}; expected different names")
    return {
        name: open_pairs(folder, scale, scored=protocol(task, scale), **reading)
        for name, folder in zip(names, sets, strict=True)
    }


def _readable(found: Sequence[Files], read: Callable[[int], T], skip_bad: bool) -> Iterator[T]:
    """What can be read of each of the files; one at least."""
    good = 0
    for index in range(len(found)):
        try:
            yield read(index)
            good += 1
        except BadImageError as error:
            if not skip_bad:
                raise BadImageError(f"{error} (--skip-bad goes on without it)") from error
            print(f"warning: left out {error}", file=sys.stderr)
    if not good:
        raise ValueError(
            f"{found[0].hq.parent}: every image is unreadable; expected at least one good one"
        )


def _load(
    found: Sequence[Files], scale: int, skip_bad: bool, degradation: Degradation | None
) -> list[Pair]:
    return list(_readable(found, lambda i: _read(found[i], scale, degradation, i), skip_bad))


def _find(
    root: Path, scale: int, degradation: Degradation | None, held_out: bool = False
) -> list[Files]:
    if scale < 1:
        raise ValueError(f"got scale {scale}; expected 1 or more")
    if degradation is not None and not has_pairs(root):
        return find_images(root)
    return find_pairs(root, scale, held_out=held_out)


def _read(files: Files, scale: int, degradation: Degradation | None, index: int) -> Pair:
    name, hq, lq = files
    return _paired(name, read_image(hq), lq, scale, degradation, (0, index), source=hq)


def _paired(
    name: str,
    hq: Image,
    lq: Path | None,
    scale: int,
    degradation: Degradation | None,
    number: tuple[int, int],
    source: Path | None = None,
) -> Pair:
    if scale < 1:
        raise ValueError(f"got scale {scale}; expected 1 or more")
    height, width = (side // scale for side in hq.shape[:2])
    seen = f"{source or name}: {'HR' if scale > 1 else 'it'} is {hq.shape[1]}x{hq.shape[0]}"
    if not height or not width:
        raise ValueError(f"{seen}; expected at least {scale} a side for scale {scale}")
    hq = hq[: height * scale, : width * scale]
    if lq is not None:
        made = read_image(lq)
    elif degradation is not None:
        made = degradation(hq, np.random.default_rng(number))
    else:
        made = matlab_bicubic(hq, 1 / scale)
    if made.shape[:2] != (height, width):
        raise ValueError(
            f"{seen}, {lq} is {made.shape[1]}x{made.shape[0]}; "
            f"expected {width}x{height} for scale {scale}"
        )
    return Pair(name, made, hq)


def lq_sizes(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """Height and width of each low-quality image."""
    if isinstance(pairs, PairFiles):
        return pairs.sizes
    return [(lq.shape[0], lq.shape[1]) for _, lq, _ in pairs]
