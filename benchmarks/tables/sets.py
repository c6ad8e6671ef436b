"""Sets of image pairs, listed at once and read when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import skimage

from examples.restoration.data import (
    PHOTOGRAPHS,
    Pair,
    list_images,
    load_pairs,
    pairs_from_images,
    read_image,
)
from examples.restoration.degrade import Image

FOLDERS = (("blur", "sharp"), ("input", "target"))
SMOKE_SIDE = 48  # pixels of a photograph's middle


@dataclass(frozen=True)
class ImageSet:
    """Images that are read when they are needed.

    Attributes:
        name: Of the set.
        files: All that is read.
        read: Reads them.
    """

    name: str
    files: tuple[Path, ...]
    read: Callable[[], list[Pair]]

    @cached_property
    def pairs(self) -> list[Pair]:
        """The images."""
        return self.read()

    @property
    def fingerprint(self) -> str:
        """Of names and sizes of the files, which are not read for it."""
        seen = "".join(f"{path.name} {path.stat().st_size}\n" for path in self.files)
        return hashlib.sha256(seen.encode()).hexdigest()[:12]


def standard(folder: Path, scale: int) -> ImageSet:
    files = tuple(list_images(folder))
    return ImageSet(folder.name, files, lambda: load_pairs(folder, scale))


def shrunk(name: str, files: Iterable[Path], scale: int, crop: int = 1) -> ImageSet:
    """Images whose LR is made, those without a whole crop left out."""
    files = tuple(files)

    def read() -> list[Pair]:
        found = {path.stem: read_image(path) for path in files}
        large = {n: x for n, x in found.items() if min(x.shape[:2]) >= crop * scale}
        return pairs_from_images(large, scale)

    return ImageSet(name, files, read)


def paired_names(folder: Path) -> list[str]:
    """Names of the files that a folder has in both its folders."""
    degraded, sharp = _folders(folder)
    names = sorted(path.name for path in list_images(sharp))
    missing = [name for name in names if not (degraded / name).is_file()]
    if missing:
        raise ValueError(f"{degraded / missing[0]}: found nothing; {sharp} has such an image")
    return names


def _folders(folder: Path) -> tuple[Path, Path]:
    for degraded, sharp in FOLDERS:
        if (folder / sharp).is_dir():
            return folder / degraded, folder / sharp
    raise ValueError(f"{folder}: found no folders blur and sharp, nor input and target")


def paired(name: str, folder: Path, names: Iterable[str] | None = None) -> ImageSet:
    degraded, sharp = _folders(folder)
    chosen = list(paired_names(folder) if names is None else names)

    def read() -> list[Pair]:
        return [Pair(Path(n).stem, read_image(degraded / n), read_image(sharp / n)) for n in chosen]

    return ImageSet(name, tuple(sharp / n for n in chosen), read)


def photographs(split: str, task: str, scale: int) -> ImageSet:
    """The middles of scikit-image's photographs, shrunk, blurred or rained on."""
    folder = Path(skimage.__file__).parent / "data"
    files = tuple(folder / name for name in PHOTOGRAPHS[split])
    degrade = {"deblur": _blurred, "derain": _rained}.get(task)

    def read() -> list[Pair]:
        middles = {path.stem: _middle(read_image(path)) for path in files}
        if degrade is None:
            return pairs_from_images(middles, scale)
        return [Pair(name, degrade(image), image) for name, image in middles.items()]

    return ImageSet("photographs", files, read)


def _middle(image: Image) -> Image:
    top, left = ((side - SMOKE_SIDE) // 2 for side in image.shape[:2])
    return image[top : top + SMOKE_SIDE, left : left + SMOKE_SIDE]


def _blurred(image: Image) -> Image:
    """Moved by a few pixels."""
    shifted = [np.roll(image, shift, axis=1).astype(float) for shift in range(5)]
    return np.mean(shifted, axis=0).round().astype(np.uint8)


def _rained(image: Image) -> Image:
    """With bright vertical streaks, always the same."""
    streaks = np.random.default_rng(0).random((1, image.shape[1], 1)) > 0.9
    return np.where(streaks, image // 2 + 127, image).astype(np.uint8)
