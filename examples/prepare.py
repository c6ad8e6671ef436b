"""Cut the images of a data set into overlapping sub-images, which are much faster to read.

    python examples/prepare.py DIV2K            # writes DIV2K_train_HR_sub, .../X2_sub and so on
    python examples/prepare.py GoPro/train      # writes blur_crops and sharp_crops

The training commands take them where they find them. Sizes and steps are those of the networks'
authors: 480 and 240 pixels of HR for DIV2K, 512 and 256 for deblurring; places are those of
BasicSR's and NAFNet's preparation, so counts agree with theirs. A second call does what a first has
left undone.
"""

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

import restoration  # noqa: F401  (before the slow ones)
from restoration.command import MAX_WORKERS, path
from restoration.data.images import image_size, read_image, write_png
from restoration.data.layouts import UNFINISHED, find_pairs, role
from restoration.data.synthetic import matlab_bicubic
from restoration.training.console import exit_status, refusing
from tqdm import tqdm

from dckd_losses.checks import check_number

HR, HR_SUB = "DIV2K_train_HR", "DIV2K_train_HR_sub"
SR_SIZE, SR_STEP = 480, 240  # pixels of HR
DEBLUR_SIZE, DEBLUR_STEP = 512, 256
WHOLE = 12  # what DIV2K's sides are multiples of: whole LR pixels for x2, x3 and x4


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""

    def command() -> None:
        with refusing():
            run(arguments())

    return exit_status(command, again="the same command")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=path, help="DIV2K's folder, or one with blur and sharp in it or below")
    text = "of super-resolution (default: 2 3 4)"
    add("--scales", type=int, nargs="+", choices=[2, 3, 4], default=[2, 3, 4], help=text)
    text = "processes (default: one a core)"
    add("--workers", type=int, metavar="N", default=os.cpu_count() or 1, help=text)
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Cut what is not there yet."""
    check_number("--workers", args.workers, at_least=1, at_most=MAX_WORKERS, whole=True)
    todo = plan(args.data, args.scales)
    check(todo)  # what fails later leaves the mark, and would fail the same way again
    mark, made = args.data / UNFINISHED, 0
    mark.touch()  # until it is gone, nobody trains on half a set
    with ProcessPoolExecutor(args.workers, initializer=leave_signals) as pool:
        results = pool.map(write_crops, todo, chunksize=4)
        try:
            for count in tqdm(results, total=len(todo), unit="image", dynamic_ncols=True):
                made += count
        except BaseException:  # without this, what is queued would be done first
            pool.shutdown(cancel_futures=True)
            raise
    mark.unlink()
    folders = sorted({str(cut.folder) for cut in todo})
    print(f"{made:,} sub-images written to {', '.join(folders)}")


def leave_signals() -> None:
    """Ctrl-C reaches every process; the first one speaks for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Cut(NamedTuple):
    """One image to be cut; numbers are pixels of the ground truth."""

    source: Path
    folder: Path  # where its parts go
    name: str  # what their names begin with
    size: int  # a side of a part
    step: int  # from one part to the next
    whole: int = 1  # what the sides are cut down to a multiple of
    unit: int = 1  # a side of one pixel of this image
    shrink: bool = False  # whether the source is the ground truth, to be made smaller by `unit`


def plan(root: Path, scales: Sequence[int]) -> list[Cut]:
    """What there is to cut in DIV2K's folder, or in one of blurred and sharp images, done or not.

    For super-resolution of some scales; LR that is not there is made.
    """
    if (root / HR).is_dir():
        return [cut for scale in (1, *scales) for cut in _plan_scale(root, scale)]
    cuts = []
    for name, hq, lq in find_pairs(root, 1, parts=False):
        assert lq is not None
        folders = zip(lq.relative_to(root).parts, hq.relative_to(root).parts, strict=False)
        kinds = next(kinds for kinds in folders if kinds[0] != kinds[1])  # such as blur and sharp
        if not all(map(role, kinds)):
            kinds = "lq", "gt"
        for source, kind in zip((lq, hq), kinds, strict=True):
            flat = name.replace("/", "-")  # GoPro's sequences
            cuts.append(Cut(source, root / f"{kind}_crops", flat, DEBLUR_SIZE, DEBLUR_STEP))
    return cuts


def _plan_scale(root: Path, scale: int) -> list[Cut]:
    """The ground truths for scale 1, otherwise the LR images."""
    numbers = {"size": SR_SIZE, "step": SR_STEP, "whole": WHOLE, "unit": scale}
    if scale == 1:
        truths = find_pairs(root / HR, 2, parts=False)
        return [Cut(f.hq, root / HR_SUB, f.name, **numbers) for f in truths]
    folder = root / f"DIV2K_train_LR_bicubic/X{scale}_sub"
    return [
        Cut(f.lq or f.hq, folder, f.name, shrink=f.lq is None, **numbers)
        for f in find_pairs(root, scale, parts=False)
    ]


def check(cuts: Sequence[Cut]) -> None:
    """Require, by their headers, images that can be cut, before the first of them is."""
    truths: dict[str, tuple[Path, tuple[int, int]]] = {}
    for cut in cuts:
        _places(cut)
        height, width = image_size(cut.source)
        truth, size = truths.setdefault(cut.name, (cut.source, (height, width)))
        expected = size if cut.shrink else tuple(side // cut.unit for side in size)
        if (height, width) != expected:
            raise ValueError(
                f"{cut.source}: got {width}x{height}; expected {expected[1]}x{expected[0]}, "
                f"as {truth} is {size[1]}x{size[0]}"
            )


def write_crops(cut: Cut) -> int:
    """Write the parts of an image that are not there, each at once; how many those were."""
    places = _places(cut)
    paths = [cut.folder / f"{cut.name}_s{number:03}.png" for number in range(1, len(places) + 1)]
    missing = [(path, at) for path, at in zip(paths, places, strict=True) if not path.is_file()]
    if missing:
        image = read_image(cut.source)
        if cut.shrink:
            height, width = (side // cut.unit * cut.unit for side in image.shape[:2])
            image = matlab_bicubic(image[:height, :width], 1 / cut.unit)
        size = cut.size // cut.unit
        for path, (top, left) in missing:
            write_png(image[top : top + size, left : left + size], path)
    return len(missing)


def _places(cut: Cut) -> list[tuple[int, int]]:
    """Top left corners of an image's parts."""
    size, step = cut.size // cut.unit, cut.step // cut.unit
    height, width = (side // cut.unit if cut.shrink else side for side in image_size(cut.source))
    if min(height, width) < size:
        raise ValueError(f"{cut.source}: got {width}x{height}; expected {size}x{size} or more")
    whole = cut.whole // cut.unit
    rows, columns = (starts(side // whole * whole, size, step) for side in (height, width))
    return [(top, left) for top in rows for left in columns]


def starts(length: int, size: int, step: int) -> list[int]:
    """Where parts begin along a side: every step, and one that ends with the image."""
    regular = list(range(0, length - size + 1, step))
    if regular and regular[-1] + size < length:
        regular.append(length - size)
    return regular


if __name__ == "__main__":
    sys.exit(main())
