"""Pairs of a low-quality image and its ground truth, in memory or in files."""

import os
import sys
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from ..results.metrics import WINDOW, Protocol, protocol
from .images import BadImageError, Image, image_size, read_image
from .layouts import Files, Source, TwoFolders, check_alike, find_pairs, sets_in
from .synthetic import matlab_bicubic

MEMORY = 4.0  # gigabytes of pixels up to which a data set is kept in memory

MADE = {"sr": "shrunk by MATLAB's bicubic", "deblur": "blurred", "derain": "rained on"}

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
    """Make low-quality versions of images by name, uint8 RGB (H, W, 3), cropped to whole LR pixels.

    By default MATLAB's bicubic makes them. What a degradation draws follows from the image's number
    and the version's.
    """
    pairs = []
    for version in range(versions):
        for index, (name, image) in enumerate(images.items()):
            height, width = lq_size(name, image.shape[:2], scale)
            hq = image[: height * scale, : width * scale]
            numbered = f"{name}-{version}" if versions > 1 else name
            pairs.append(Pair(numbered, degraded(hq, scale, degradation, (version, index)), hq))
    return pairs


def degraded(
    hq: Image, scale: int, degradation: Degradation | None, seed: tuple[int, int]
) -> Image:
    """The low-quality version of an image."""
    if degradation is None:
        return matlab_bicubic(hq, 1 / scale)
    return degradation(hq, np.random.default_rng(seed))


def lq_size(name: str | Path, size: tuple[int, ...], scale: int) -> tuple[int, int]:
    """Height and width of the LR of an image, or ValueError."""
    if scale < 1:
        raise ValueError(f"got scale {scale}; expected 1 or more")
    height, width = (side // scale for side in size[:2])
    if not height or not width:
        seen = f"{name}: {'HR' if scale > 1 else 'it'} is {size[1]}x{size[0]}"
        raise ValueError(f"{seen}; expected at least {scale} a side for scale {scale}")
    return height, width


class PairFiles(Sequence[Pair]):
    """The pairs of a data set, each read from its files whenever it is asked for.

    HR is cropped to whole LR pixels. Low-quality images that are not there are made by the
    degradation, which draws by the image's name, or by MATLAB's bicubic. Unreadable images are
    refused, or left out with `skip_bad`.

    Attributes:
        sizes: Height and width of each low-quality image, by the headers.
        left_out: The names of the unreadable images.

    Raises:
        BadImageError: A file is unreadable.
        ValueError: Sizes do not fit the scale, or every image is unreadable.
    """

    def __init__(
        self,
        files: Sequence[Files],
        scale: int,
        degradation: Degradation | None = None,
        *,
        skip_bad: bool = False,
        source: Source | None = None,
    ) -> None:
        self.source, self.files, self.left_out = source, list(files), dict[str, None]()
        self.scale, self.degradation, self.skip_bad = scale, degradation, skip_bad
        self._kept: list[Pair] = []
        self.sizes: list[tuple[int, int]] = []
        self.sizes = self._each(self._size)

    @property
    def in_memory(self) -> bool:
        """Whether the pairs are read already."""
        return bool(self._kept)

    def keep(self) -> None:
        """Read all pairs into memory."""
        self._kept = self._each(self._read)

    def check(self) -> None:
        """Read all pairs, for the unreadable ones to be found."""
        self._each(lambda files: bool(self._read(files)))

    def _each(self, read: Callable[[Files], Any]) -> list[Any]:
        """What is read of each; those of which nothing can be read are left out."""
        results, good = [], []
        for index, files in enumerate(self.files):
            try:
                results.append(read(files))
                good.append(index)
            except BadImageError as error:
                self.leave_out(files.name, error)
        if not good:
            seen = self.files[0].hq.parent
            raise ValueError(f"{seen}: every image is unreadable; expected at least one good one")
        self.files = [self.files[index] for index in good]
        self.sizes = [self.sizes[index] for index in good] if self.sizes else []
        return results

    def leave_out(self, name: str, error: BadImageError) -> None:
        """Note an unreadable image and say so once, or raise its error."""
        if not self.skip_bad:
            raise BadImageError(f"{error} (--skip-bad goes on without it)")
        if name not in self.left_out:
            print(f"warning: left out {error}", file=sys.stderr)
        self.left_out[name] = None

    def _size(self, files: Files) -> tuple[int, int]:
        """Height and width of LR by the headers, or ValueError for sizes that do not fit."""
        hq = image_size(files.hq)
        size = lq_size(files.hq, hq, self.scale)
        seen = image_size(files.lq) if files.lq else size
        if seen != size:
            raise ValueError(
                f"{files.hq}: {'HR' if self.scale > 1 else 'it'} is {hq[1]}x{hq[0]}, {files.lq} is "
                f"{seen[1]}x{seen[0]}; expected {size[1]}x{size[0]} for scale {self.scale}"
            )
        return size

    def _read(self, files: Files) -> Pair:
        hq = read_image(files.hq)
        height, width = lq_size(files.hq, hq.shape[:2], self.scale)
        cropped = hq[: height * self.scale, : width * self.scale]
        if files.lq is None:
            seed = 0, zlib.crc32(os.fsencode(files.name))
            lq = degraded(cropped, self.scale, self.degradation, seed)
        else:
            lq = read_image(files.lq)
        if lq.shape[:2] != (height, width):
            raise BadImageError(f"{files.lq}: has changed its size since it was opened")
        return Pair(files.name, lq, cropped)

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> Pair:  # type: ignore[override]
        """A pair; BadImageError where it cannot be read now."""
        return self._kept[index] if self._kept else self._read(self.files[index])


def open_pairs(
    source: str | Source,
    scale: int,
    *,
    skip_bad: bool = False,
    degradation: Degradation | None = None,
    memory: float = MEMORY,
    scored: Protocol | None = None,
) -> PairFiles:
    """A data set of one of the layouts in `layouts`, kept in memory if its pixels fit.

    Args:
        source: Its folder, or those of its two versions.
        scale: HR size over LR size, to which HR is cropped; 1 for pairs of one size.
        skip_bad: Leave out unreadable files, with a warning on stderr, instead of stopping.
        degradation: For scale 1: what makes low-quality images where there are none.
        memory: Gigabytes of pixels, as uint8, up to which they are kept.
        scored: The protocol of a set that is held out, whose images have to be large enough for
            SSIM, and which is chosen as by `layouts.find_pairs`.

    Raises:
        BadImageError: A file is unreadable.
        ValueError: As `layouts.find_pairs`, or for sizes that do not fit.
    """
    if source == "":
        raise ValueError("got an empty path; expected a folder of images")
    source = Path(source) if isinstance(source, str) else source
    alone, held_out = degradation is not None, scored is not None
    found = find_pairs(source, scale, alone=alone, held_out=held_out, complete=not skip_bad)
    pairs = PairFiles(found, scale, degradation, skip_bad=skip_bad, source=source)
    if said := check_alike(source, pairs.files):
        print(f"warning: {said}", file=sys.stderr)
    for files, size in zip(pairs.files if scored else (), pairs.sizes, strict=False):
        _check_scored(files.hq, size, scale, scored)
    if 3 * (1 + scale**2) * sum(h * w for h, w in pairs.sizes) <= memory * 1e9:
        pairs.keep()
    elif held_out and skip_bad:
        pairs.check()  # they are scored later, all of them
    return pairs


def _check_scored(path: Path, size: tuple[int, int], scale: int, scored: Protocol) -> None:
    """Require an image that leaves a window of SSIM inside its border."""
    least = -(-(WINDOW + 2 * scored.crop) // scale) * scale  # it is cropped to whole LR pixels
    if min(size) * scale < least:
        inside = f" inside a border of {scored.crop}" if scored.crop else ""
        height, width = image_size(path)
        raise ValueError(
            f"{path}: {width}x{height} pixels; scoring needs {least}x{least} or more "
            f"(SSIM takes {WINDOW}x{WINDOW}{inside})"
        )


def open_sets(
    sources: Sequence[Source], task: str, scale: int, **reading: Any
) -> dict[str, PairFiles]:
    """Sets to be scored, by their folders' names; Rain13K's five tests are five.

    Sets of one name get their folders' names before it; those of the same ground truths are named
    by their low-quality images.
    """
    sets = [each for source in sources for each in sets_in(source)]
    for kind in (lambda each: each.gt, lambda each: each.lq or each.gt):
        places = [kind(s) if isinstance(s, TwoFolders) else s for s in sets]
        parts = [place.resolve().parts for place in places]
        if len(set(parts)) == len(parts):
            break
    else:
        same = next(each for each, place in zip(sets, parts, strict=True) if parts.count(place) > 1)
        raise ValueError(f"got the set {same} twice; expected each set once")
    return {
        name: open_pairs(each, scale, scored=protocol(task, scale), **reading)
        for name, each in zip(last_parts(parts), sets, strict=True)
    }


def last_parts(places: Sequence[Sequence[str]]) -> list[str]:
    """Different paths by their last parts, as few as tell them apart."""
    lengths = range(1, max(map(len, places)) + 1)
    names = (["/".join(place[-length:]) for place in places] for length in lengths)
    return next(each for each in names if len(set(each)) == len(each))


def lq_sizes(pairs: Sequence[Pair]) -> list[tuple[int, int]]:
    """Height and width of each low-quality image."""
    if isinstance(pairs, PairFiles):
        return pairs.sizes
    return [(lq.shape[0], lq.shape[1]) for _, lq, _ in pairs]


def made(task: str, pairs: Sequence[Pair]) -> str:
    """What is to be said of a data set whose low-quality images are made, or nothing."""
    if not isinstance(pairs, PairFiles) or pairs.files[0].lq is not None:
        return ""
    of_scale = f" for x{pairs.scale}" if pairs.scale > 1 else ""
    return f"no pairs{of_scale} in {pairs.source}: its images are {MADE[task]}"


def left_out(sets: Iterable[Sequence[Pair]]) -> list[str]:
    """Names of images of some data sets that could not be read."""
    return sorted({name for pairs in sets for name in getattr(pairs, "left_out", ())})
