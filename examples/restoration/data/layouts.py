"""Data sets as people have them on disk: which file belongs to which.

Super-resolution: `HR` with `LR_bicubic/X2`, `GTmod12` with `LRbicx2`, DIV2K's folders, or a plain
folder. Deblurring and deraining: `input` with `target`, `blur` with `sharp` and others, in the
folder or in folders below it, such as GoPro's sequences and Rain13K's test sets.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from itertools import permutations
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .images import BadImageError, image_size, list_images, read_image
from .synthetic import matlab_bicubic

SCALED = {  # HR's folder and LR's; sub-images, where somebody has cut them, are what is meant
    "DIV2K_train_HR_sub": "DIV2K_train_LR_bicubic/X{scale}_sub",
    "DIV2K_train_HR": "DIV2K_train_LR_bicubic/X{scale}",
    "DIV2K_valid_HR": "DIV2K_valid_LR_bicubic/X{scale}",
    "HR": "LR_bicubic/X{scale}",
    "GTmod12": "LRbicx{scale}",  # BasicSR's test sets
}
HELD_OUT = "DIV2K_valid_HR"
DEGRADED = {  # folders of low-quality images, and how their ground truths' may be called
    "input": ("target", "gt"),
    "blur": ("sharp", "gt"),
    "lq": ("gt",),
    "rain": ("norain", "gt"),
    "rainy": ("gt", "clean"),
}
TRUTHS = {hq for names in DEGRADED.values() for hq in names}
PART = "_sub"  # ends names of folders of DIV2K's sub-images
UNFINISHED = ".unfinished"  # lies in a data set while prepare.py is at work there
CROPS = [(f"{lq}_crops", f"{hq}_crops") for lq, names in DEGRADED.items() for hq in names]
SPLITS = {"train", "val", "valid", "validation", "test"}
RAIN_SETS = ("Test100", "Rain100H", "Rain100L", "Test2800", "Test1200")  # the paper's Table 4


class Files(NamedTuple):
    """A pair's name, its ground truth, and its low-quality image, None where that is to be made."""

    name: str
    hq: Path
    lq: Path | None


def find_pairs(
    root: Path, scale: int, *, parts: bool = True, held_out: bool = False
) -> list[Files]:
    """The pairs of a data set.

    Args:
        root: Its folder.
        scale: HR size over LR size; 1 for deblurring and deraining.
        parts: Whether sub-images stand for their images where there are any.
        held_out: Whether they are to be scored: of all DIV2K that is its validation images.

    Raises:
        ValueError: What is there is no such data set, or not the whole of one; says what is
        missing.
    """
    mark = root / UNFINISHED
    if parts and mark.exists():
        raise ValueError(
            f"{mark}: sub-images are unfinished; expected prepare.py to be run again, or them and "
            "this file to be removed"
        )
    if scale == 1:
        return _find_degraded(root, parts)
    return _find_scaled(root, scale, parts, held_out)


def find_images(root: Path) -> list[Files]:
    """All images in and below a folder, as ground truths to be degraded, see `check_truths`."""
    images = _by_name(root)
    check_truths(root, [*images.values()], TRUTHS)
    return [Files(name, path, None) for name, path in images.items()]


def lacks_pairs(root: Path, scale: int, *, held_out: bool = False) -> bool:
    """Whether low-quality images have to be made."""
    if scale == 1:
        return not has_pairs(root)
    return any(files.lq is None for files in find_pairs(root, scale, held_out=held_out))


def has_pairs(root: Path) -> bool:
    """Whether a folder, or one below it, holds pairs of one size."""
    return root.is_dir() and any(True for _ in _degraded_folders(root, parts=True))


def sets_in(root: Path) -> list[Path]:
    """The sets to be scored apart: Rain13K's test sets where a folder holds them, or itself."""
    return [root / name for name in RAIN_SETS if (root / name).is_dir()] or [root]


def _find_scaled(root: Path, scale: int, parts: bool, held_out: bool) -> list[Files]:
    usable = (name for name in SCALED if parts or not name.endswith(PART))
    there = [name for name in usable if (root / name).is_dir()]
    if held_out and HELD_OUT in there:
        there = [HELD_OUT]
    if not there:
        return find_images(root)
    whole = there[0].removesuffix(PART)
    folders = {
        root / name: root / SCALED[name].format(scale=scale)
        for name in there
        if name.removesuffix(PART) == whole
    }
    # sub-images only where LR of this scale has been cut, too, or there is none at all
    known = ((hr, lr) for hr, lr in folders.items() if lr.is_dir())
    hr, lr_folder = next(known, (root / there[0], None))
    if lr_folder is None:
        return find_images(hr)
    lq = _by_name(lr_folder)
    found = [
        Files(name, path, lq.get(name, lq.get(f"{name}x{scale}")))
        for name, path in _by_name(hr).items()
    ]
    for name, path, match in found:
        if match is None:
            raise ValueError(f"{path}: no LR image; expected {lr_folder / name} or {name}x{scale}")
    return found


def _find_degraded(root: Path, parts: bool) -> list[Files]:
    list_images(root)  # a missing or empty folder has a sentence of its own
    folders = list(_degraded_folders(root, parts))
    if not folders:
        names = ", ".join(f"{lq} with {' or '.join(hqs)}" for lq, hqs in DEGRADED.items())
        raise ValueError(f"{root}: found no pairs; expected folders {names}, in it or below")
    splits = {part for folder, _ in folders for part in folder.relative_to(root).parts} & SPLITS
    if len(splits) > 1:
        raise ValueError(f"{root}: holds {' and '.join(sorted(splits))}; expected one of them")
    return [files for lq, hq in folders for files in _matched(root, lq, hq)]


def _degraded_folders(root: Path, parts: bool) -> Iterator[tuple[Path, Path]]:
    """Folders of degraded images and of their ground truths."""
    for lq, hq in CROPS:
        if parts and (root / lq).is_dir() and (root / hq).is_dir():
            yield root / lq, root / hq
            return
    for path in sorted(root.rglob("*")):
        if path.name in DEGRADED and path.is_dir():
            partners = (path.with_name(name) for name in DEGRADED[path.name])
            partner = next((folder for folder in partners if folder.is_dir()), None)
            if partner is not None:
                yield path, partner


def _matched(root: Path, lq_folder: Path, hq_folder: Path) -> list[Files]:
    lq, hq = _by_name(lq_folder), _by_name(hq_folder)
    if lq.keys() != hq.keys():
        lq, hq = _unprefixed(lq, lq_folder.name), _unprefixed(hq, hq_folder.name)
    for name in sorted({*lq} ^ {*hq}):
        path, other = (lq[name], hq_folder) if name in lq else (hq[name], lq_folder)
        raise ValueError(f"{path}: no partner; expected {other / name}")
    within = lq_folder.parent.relative_to(root)
    return [Files((within / name).as_posix(), hq[name], path) for name, path in lq.items()]


def _unprefixed(images: dict[str, Path], folder: str) -> dict[str, Path]:
    """By names that do not begin with the folder's, as RealBlur's blur_1 and gt_1 do."""
    prefix = re.compile(rf"(^|/){folder}[-_](?=[^/]*$)")
    shorter = {prefix.sub(r"\1", name): path for name, path in images.items()}
    return shorter if len(shorter) == len(images) else images


def _by_name(root: Path) -> dict[str, Path]:
    """Images by their path below root, without the suffix."""
    images: dict[str, Path] = {}
    for path in list_images(root):
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in images:
            raise ValueError(f"{path} and {images[name].name} share a name; expected one of them")
        images[name] = path
    return images


LR_FOLDER = re.compile(r"(.*_)?LR([_\d].*|x\d.*|b.*)?|x\d(_.*)?|.*bicubic.*", re.IGNORECASE)
ALIKE = 0.95  # correlation above which one image is another made smaller


def check_truths(root: Path, images: Sequence[Path], names: Collection[str]) -> None:
    """Require images that can all be ground truths, where no layout is known.

    Refused are folders like `LR_bicubic`, `LRbicx4` or `X2`, images beside a folder of one of the
    names, which are those of ground truths' folders, and a folder that has another's images
    smaller.
    """
    parents = {parent for path in images for parent in path.relative_to(root).parents}
    folders = sorted(root / parent for parent in parents if parent.name)
    for folder in folders:
        if LR_FOLDER.fullmatch(folder.name):
            raise ValueError(
                f"{folder}: named as LR images are; expected the folder that holds HR and LR by "
                "names in examples/README.md, or one of ground truths alone"
            )
    for truths in folders:
        if truths.name.lower() in names:
            beside = [p for p in (*folders, *images) if p.parent == truths.parent and p != truths]
            if beside:
                raise ValueError(
                    f"{truths}: found beside {beside[0].name}; expected pairs in folders by names "
                    "in examples/README.md, or a folder of ground truths alone"
                )
    _refuse_copies(images)


def _refuse_copies(images: Sequence[Path]) -> None:
    """Refuse a folder of another's images made smaller, by the first image of each."""
    firsts: dict[Path, tuple[str, Path]] = {}
    for path in images:
        named = re.sub(r"x\d$", "", path.stem), path
        firsts[path.parent] = min(firsts.get(path.parent, named), named)
    sizes: dict[str, dict[tuple[int, int], Path]] = defaultdict(dict)
    for name, path in firsts.values():
        try:
            sizes[name].setdefault(image_size(path), path)
        except BadImageError:
            continue  # whoever reads it says so
    for by_size in sizes.values():
        for (large, path), (small, other) in permutations(by_size.items(), 2):
            times = large[0] // small[0]
            fits = times > 1 and (large[0] // times, large[1] // times) == small
            if fits and _made_of(other, path, times):
                raise ValueError(
                    f"{other}: found to be {path} made smaller; expected the folder that holds "
                    "HR and LR by names in examples/README.md, or one of ground truths alone"
                )


def _made_of(small: Path, large: Path, times: int) -> bool:
    """Whether an image shows what a larger one does."""
    try:
        lq, hq = read_image(small), read_image(large)
    except BadImageError:
        return False
    height, width = (times * side for side in lq.shape[:2])
    made = matlab_bicubic(hq[:height, :width], 1 / times)
    with np.errstate(divide="ignore", invalid="ignore"):  # of a single colour: not a number
        return bool(np.corrcoef(made.ravel(), lq.ravel())[0, 1] > ALIKE)
