"""Which images train, which are looked at on the way, which are only tested on; and scores.

Under the folder that the environment variable DCKD_DATA names:

- `sr/train/T91` and `sr/train/BSDS500`: of the latter, in the order of their names, every seventh
  from the first is tested on (30, the set `BSDS30`), every 21st from the fourth is for development
  (10); all others and T91 train, as far as they are as large as a crop. `sr/Set5` is tested on.
- `deblur/REDS_mini` and `derain/Rain100L_dev`, each `train` and `val`: the last fifth of `train` is
  for development, `val` is tested on.
- For the paper's budget `sr/train/DIV2K`, `sr/<set>`, `deblur/GoPro/{train,test}`,
  `derain/Rain13K` and `derain/<set>`, in the layouts of `examples/restoration/data/layouts.py`; the
  first test set is also looked at on the way, as the released code does.

The smoke budget takes the middle of scikit-image's photographs and leaves DCKD_DATA alone.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import skimage
from torch import nn

from examples.restoration.data.datasets import Pair, PairFiles, open_pairs, pairs_from_images
from examples.restoration.data.images import PHOTOGRAPHS, Image, list_images, read_image
from examples.restoration.data.layouts import Files, find_pairs
from examples.restoration.data.synthetic import camera_motion, rain
from examples.restoration.results.evaluation import enlarged, restore
from examples.restoration.results.metrics import protocol, psnr, ssim

TESTED, DEVELOPED = slice(0, 210, 7), slice(3, 213, 21)  # of BSDS500's 221 photographs
DEVELOPMENT_SHARE = 5  # of the other tasks' training images, one in so many
SMALL = {"deblur": "REDS_mini", "derain": "Rain100L_dev"}
PAPER = {"sr": "sr/train/DIV2K", "deblur": "deblur/GoPro/train", "derain": "derain/Rain13K"}
PLACES = {"GoPro": "deblur/GoPro/test"}  # of test sets that lie elsewhere than under their names
SMOKE_SIDE = 48  # pixels of a photograph's middle


@dataclass(frozen=True)
class ImageSet:
    """Images that are read when they are needed."""

    name: str  # of the set
    files: tuple[Path, ...]  # all that is read
    read: Callable[[], Sequence[Pair]]  # reads them

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


@dataclass(frozen=True)
class Images:
    """What one block is trained and tested on."""

    train: ImageSet  # crops are taken from these
    development: ImageSet  # the curves are of these, and what is chosen is chosen on these
    tests: tuple[ImageSet, ...]  # the tables' sets
    own_development: bool = False  # whether the user has said which


def images(budget: str, task: str, scale: int, sets: tuple[str, ...]) -> Images:
    """The images of a task in a budget, with these of the paper's test sets.

    Raises:
        ValueError: DCKD_DATA is not set, or a folder or file is missing.
    """
    if budget == "smoke":
        train, held_out = (photographs(split, task, scale) for split in PHOTOGRAPHS)
        return Images(train, held_out, (held_out,))
    root = data_root()
    if budget == "paper":
        return _paper(root, task, scale, sets)
    return _small_sr(root / "sr", scale) if task == "sr" else _small_same_size(root, task)


def named(
    found: Images, sets: Sequence[str], development: str | None, task: str, scale: int
) -> Images:
    """The same with other sets to test on and to look at on the way.

    Args:
        found: The images of a budget.
        sets: Names of its test sets, paths of folders, or names of folders under DCKD_DATA; none
            for the budget's own.
        development: Likewise, one.
        task: "sr", "deblur" or "derain".
        scale: Output size over input size.

    Raises:
        ValueError: There is no such folder, one lies in no layout of `layouts`, or two have a name.
    """
    known = {images.name: images for images in (*found.tests, found.development)}

    def find(name: str) -> ImageSet:
        if name in known:
            return known[name]
        places = [Path(name)]
        if os.environ.get("DCKD_DATA"):
            places.append(data_root() / task / name)
        folder = next((place for place in places if place.is_dir()), None)
        if folder is None:
            looked = " or ".join(map(str, places))
            raise ValueError(
                f"got set {name}, no folder {looked}; expected one, or {', '.join(known)}"
            )
        return stored(folder, scale)

    if development:
        found = replace(found, development=find(development), own_development=True)
    tests = tuple(map(find, sets))
    names = [each.name for each in tests]
    if len(set(names)) < len(names):
        raise ValueError(f"got --sets {', '.join(names)}; expected folders of different names")
    return replace(found, tests=tests) if tests else found


def data_root() -> Path:
    """The folder that DCKD_DATA names."""
    name = os.environ.get("DCKD_DATA")
    if not name:
        raise ValueError(
            "DCKD_DATA is not set: name the folder of images by it, in which "
            "benchmarks/tables/data.py says what has to lie; --budget smoke needs none"
        )
    return Path(name)


def _small_sr(root: Path, scale: int) -> Images:
    every = list_images(root / "train" / "BSDS500")
    tested, developed = every[TESTED], every[DEVELOPED]
    rest = [path for path in every if path not in {*tested, *developed}]
    train = [*list_images(root / "train" / "T91"), *rest]
    return Images(
        shrunk("T91 and BSDS500", train, scale),
        shrunk("development", developed, scale),
        (stored(root / "Set5", scale), shrunk("BSDS30", tested, scale)),
    )


def _small_same_size(root: Path, task: str) -> Images:
    folder = root / task / SMALL[task]
    found = find_pairs(folder / "train", 1)
    count = len(found) // DEVELOPMENT_SHARE
    return Images(
        part(SMALL[task], found[:-count], 1),
        part("development", found[-count:], 1),
        (stored(folder / "val", 1, SMALL[task]),),
    )


def _paper(root: Path, task: str, scale: int, sets: tuple[str, ...]) -> Images:
    tests = tuple(stored(root / PLACES.get(n, f"{task}/{n}"), scale, n) for n in sets)
    return Images(stored(root / PAPER[task], scale), tests[0], tests)


# Scores


def score(
    model: nn.Module | None,
    images: ImageSet,
    task: str,
    scale: int,
    measures: Sequence[Callable[..., float]] = (psnr, ssim),
) -> dict[str, float]:
    """Means over a set, by name; without a network of the input itself, enlarged by bicubic."""
    rules, sums = protocol(task, scale), {measure.__name__: 0.0 for measure in measures}
    for pair in images.pairs:
        out = enlarged(pair.lq, scale) if model is None else restore(model, pair.lq)
        for measure in measures:
            sums[measure.__name__] += measure(out, pair.hq, rules)
    return {name: total / len(images.pairs) for name, total in sums.items()}


def mean_psnr(model: nn.Module, images: ImageSet, task: str, scale: int) -> float:
    """The same without SSIM, which takes longer."""
    return score(model, images, task, scale, (psnr,))["psnr"]
