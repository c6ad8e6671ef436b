"""Sets of image pairs, listed at once and read when they are needed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import skimage

from examples.restoration.degrade import Image
from examples.restoration.images import PHOTOGRAPHS, read_image
from examples.restoration.layouts import Files, find_pairs
from examples.restoration.motion import camera_motion
from examples.restoration.pairs import Pair, PairFiles, open_pairs, pairs_from_images
from examples.restoration.rain import rain

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
    read: Callable[[], Sequence[Pair]]

    @cached_property
    def pairs(self) -> Sequence[Pair]:
        """The images, from memory if they fit into it."""
        return self.read()

    @property
    def fingerprint(self) -> str:
        """Of names and sizes of the files, which are not read for it."""
        seen = "".join(f"{path.name} {path.stat().st_size}\n" for path in self.files)
        return hashlib.sha256(seen.encode()).hexdigest()[:12]


def stored(folder: Path, scale: int, name: str | None = None) -> ImageSet:
    """A data set in one of the layouts of `layouts`, by default under its folder's name."""
    found = find_pairs(folder, scale)
    return ImageSet(name or folder.name, _paths(found), lambda: open_pairs(folder, scale))


def part(name: str, found: Sequence[Files], scale: int) -> ImageSet:
    """Some of a data set's pairs, in memory."""
    return ImageSet(name, _paths(found), lambda: list(PairFiles(found, scale)))


def _paths(found: Iterable[Files]) -> tuple[Path, ...]:
    return tuple(path for _, hq, lq in found for path in (hq, lq) if path is not None)


def shrunk(name: str, files: Iterable[Path], scale: int) -> ImageSet:
    """Images whose LR is made."""
    files = tuple(files)

    def read() -> list[Pair]:
        return pairs_from_images({path.stem: read_image(path) for path in files}, scale)

    return ImageSet(name, files, read)


def photographs(split: str, task: str, scale: int) -> ImageSet:
    """The middles of scikit-image's photographs, shrunk, blurred or rained on."""
    folder = Path(skimage.__file__).parent / "data"
    files = tuple(folder / name for name in PHOTOGRAPHS[split])
    degradation = {"deblur": camera_motion, "derain": rain}.get(task)

    def read() -> list[Pair]:
        middles = {path.stem: _middle(read_image(path)) for path in files}
        return pairs_from_images(middles, scale, degradation)

    return ImageSet("photographs", files, read)


def _middle(image: Image) -> Image:
    top, left = ((side - SMOKE_SIDE) // 2 for side in image.shape[:2])
    return image[top : top + SMOKE_SIDE, left : left + SMOKE_SIDE]
