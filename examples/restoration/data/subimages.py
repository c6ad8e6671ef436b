"""Sub-images: overlapping parts of large images, each a file of its own.

A crop of a sub-image costs the decoding of 0.2 megapixels instead of a photograph's three. Places
are those of BasicSR's and NAFNet's preparation, so counts agree with theirs.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from .images import image_size, read_image, write_png
from .layouts import find_pairs, role
from .synthetic import matlab_bicubic

HR, HR_SUB = "DIV2K_train_HR", "DIV2K_train_HR_sub"
SR_SIZE, SR_STEP = 480, 240  # pixels of HR
DEBLUR_SIZE, DEBLUR_STEP = 512, 256
WHOLE = 12  # what DIV2K's sides are multiples of: whole LR pixels for x2, x3 and x4


class Cut(NamedTuple):
    """One image to be cut.

    Attributes:
        source: Its file.
        folder: Where its parts go.
        name: What their names begin with.
        size: Pixels a side of a part of the ground truth.
        step: From one to the next.
        whole: What the ground truth's sides are cut down to a multiple of.
        unit: Pixels of the ground truth to one of this image.
        shrink: Whether the source is the ground truth, and is to be made smaller by `unit`.
    """

    source: Path
    folder: Path
    name: str
    size: int
    step: int
    whole: int = 1
    unit: int = 1
    shrink: bool = False


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
