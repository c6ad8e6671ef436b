"""How fast random crops come from memory, from sub-images and from whole photographs.

    python -m benchmarks.loading

Photographs of DIV2K's size are made of scikit-image's. "bytes" reads the files and decodes none of
them: what a database of encoded images, such as LMDB, could save at most is a part of that.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from examples.restoration.data import PairFiles, RandomCrops, load_pairs, photographs
from examples.restoration.degrade import matlab_bicubic
from examples.restoration.images import write_png
from examples.restoration.layouts import find_pairs
from examples.restoration.subimages import HR, do, plan

SCALE, CROP = 2, 48
HEIGHT, WIDTH = 1356, 2040
CROPS = 100


def main() -> None:
    """Print crops a second and milliseconds a crop."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        make_photographs(root)
        for cut in plan(root, [SCALE]):
            do(cut)
        parts, whole = find_pairs(root, SCALE), find_pairs(root, SCALE, parts=False)
        files = [path for pair in parts for path in (pair.hq, pair.lq) if path]
        rows = {
            "memory": crops_of(load_pairs(root, SCALE)),
            "sub-images": crops_of(PairFiles(parts, SCALE)),
            "sub-images, bytes": lambda i: [
                files[2 * i % len(files) + k].read_bytes() for k in (0, 1)
            ],
            "photographs": crops_of(PairFiles(whole, SCALE)),
        }
        print(f"{'':20}{'ms a crop':>12}{'crops a second':>18}")
        for name, take in rows.items():
            seconds = timed(take)
            print(f"{name:20}{1000 * seconds:12.2f}{1 / seconds:18,.0f}")


def make_photographs(root: Path) -> None:
    """Photographs of DIV2K's size, with as much detail: mosaics of mirrored small ones."""
    for name, image in photographs("train").items():
        rows, columns = -(-HEIGHT // image.shape[0]), -(-WIDTH // image.shape[1])
        missing = ((0, (rows - 1) * image.shape[0]), (0, (columns - 1) * image.shape[1]), (0, 0))
        large = np.pad(image, missing, mode="symmetric")[:HEIGHT, :WIDTH]
        write_png(large, root / HR / f"{name}.png")
        lr = root / f"DIV2K_train_LR_bicubic/X{SCALE}/{name}x{SCALE}.png"
        write_png(matlab_bicubic(large, 1 / SCALE), lr)


def crops_of(pairs: PairFiles | list) -> Callable[[int], object]:  # type: ignore[type-arg]
    """Item i of random crops."""
    return RandomCrops(pairs, crop=CROP, scale=SCALE, length=CROPS, seed=0).__getitem__


def timed(take: Callable[[int], object]) -> float:
    """Median over three rounds of the seconds an item takes."""
    rounds = []
    for _ in range(3):
        start = time.perf_counter()
        for index in range(CROPS):
            take(index)
        rounds.append((time.perf_counter() - start) / CROPS)
    return sorted(rounds)[1]


if __name__ == "__main__":
    main()
