"""Which images train, which are looked at on the way, and which are only tested on.

Under the folder that the environment variable DCKD_DATA names:

- `sr/train/T91` and `sr/train/BSDS500`: of the latter, in the order of their names, every seventh
  from the first is tested on (30, the set `BSDS30`), every 21st from the fourth is for development
  (10); all others and T91 train, as far as they are as large as a crop. `sr/Set5` is tested on.
- `deblur/REDS_mini` and `derain/Rain100L_dev`, each `train` and `val`: the last fifth of `train` is
  for development, `val` is tested on.
- For the paper's budget `sr/train/DIV2K`, `sr/<set>`, `deblur/GoPro/{train,test}`,
  `derain/Rain13K` and `derain/<set>`, in the layouts of `examples/restoration/layouts.py`; the
  first test set is also looked at on the way, as the released code does.

The smoke budget takes the middle of scikit-image's photographs and leaves DCKD_DATA alone.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables.sets import ImageSet, part, photographs, shrunk, stored
from examples.restoration.images import PHOTOGRAPHS, list_images
from examples.restoration.layouts import find_pairs

TESTED, DEVELOPED = slice(0, 210, 7), slice(3, 213, 21)  # of BSDS500's 221 photographs
DEVELOPMENT_SHARE = 5  # of the other tasks' training images, one in so many
SMALL = {"deblur": "REDS_mini", "derain": "Rain100L_dev"}
PAPER = {"sr": "sr/train/DIV2K", "deblur": "deblur/GoPro/train", "derain": "derain/Rain13K"}
PLACES = {"GoPro": "deblur/GoPro/test"}  # of test sets that lie elsewhere than under their names


@dataclass(frozen=True)
class Images:
    """What one block is trained and tested on.

    Attributes:
        train: Crops are taken from these.
        development: The curves are of these, and what is chosen is chosen on these.
        tests: The tables' sets.
    """

    train: ImageSet
    development: ImageSet
    tests: tuple[ImageSet, ...]


def images(budget: str, task: str, scale: int, sets: tuple[str, ...]) -> Images:
    """The images of a task in a budget.

    Args:
        budget: "paper", "small" or "smoke".
        task: "sr", "deblur" or "derain".
        scale: Output size over input size.
        sets: Names of the paper's test sets.

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


def data_root() -> Path:
    """The folder that DCKD_DATA names."""
    name = os.environ.get("DCKD_DATA")
    if not name:
        raise ValueError(
            "DCKD_DATA is not set: name the folder of images by it, in which "
            "benchmarks/tables/images.py says what has to lie; --budget smoke needs none"
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
