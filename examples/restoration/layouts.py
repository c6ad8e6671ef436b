"""Data sets as people have them on disk: which file belongs to which.

Super-resolution: `HR` with `LR_bicubic/X2`, DIV2K's folders, or a plain folder. Deblurring and
deraining: `input` with `target` or `blur` with `sharp`, in the folder or in folders below it, such
as GoPro's sequences and Rain13K's test sets.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from .images import list_images

SCALED = {  # HR's folder and LR's; sub-images, where somebody has cut them, are what is meant
    "DIV2K_train_HR_sub": "DIV2K_train_LR_bicubic/X{scale}_sub",
    "DIV2K_train_HR": "DIV2K_train_LR_bicubic/X{scale}",
    "DIV2K_valid_HR": "DIV2K_valid_LR_bicubic/X{scale}",
    "HR": "LR_bicubic/X{scale}",
}
DEGRADED = {"input": "target", "blur": "sharp"}
UNFINISHED = ".unfinished"  # lies in a data set while prepare.py is at work there
CROPS = {f"{lq}_crops": f"{hq}_crops" for lq, hq in DEGRADED.items()}
SPLITS = {"train", "val", "valid", "validation", "test"}
RAIN_SETS = ("Test100", "Rain100H", "Rain100L", "Test2800", "Test1200")  # the paper's Table 4


class Files(NamedTuple):
    """A pair's name, its ground truth, and its low-quality image, None where that is to be made."""

    name: str
    hq: Path
    lq: Path | None


def find_pairs(root: Path, scale: int, *, parts: bool = True) -> list[Files]:
    """The pairs of a data set.

    Args:
        root: Its folder.
        scale: HR size over LR size; 1 for deblurring and deraining.
        parts: Whether sub-images stand for their images where there are any.

    Raises:
        ValueError: For a missing or empty folder, an image without its partner, no pairs for
            scale 1, several splits, or sub-images that prepare.py has not finished.
    """
    if parts and (root / UNFINISHED).exists():
        raise ValueError(
            f"{root}: found unfinished sub-images; expected prepare.py to be run again"
        )
    return _find_scaled(root, scale, parts) if scale > 1 else _find_degraded(root, parts)


def find_images(root: Path) -> list[Files]:
    """All images in and below a folder, as ground truths to be degraded."""
    return [Files(name, path, None) for name, path in _by_name(root).items()]


def has_pairs(root: Path) -> bool:
    """Whether a folder, or one below it, holds pairs of one size."""
    return root.is_dir() and any(True for _ in _degraded_folders(root, parts=True))


def sets_in(root: Path) -> list[Path]:
    """The sets to be scored apart: Rain13K's test sets where a folder holds them, or itself."""
    return [root / name for name in RAIN_SETS if (root / name).is_dir()] or [root]


def _find_scaled(root: Path, scale: int, parts: bool) -> list[Files]:
    usable = (name for name in SCALED if parts or not name.endswith("_sub"))
    hr = next((name for name in usable if (root / name).is_dir()), None)
    if hr is None:
        found = find_images(root)
        _refuse_nested(root, found)
        return found
    lr_folder = root / SCALED[hr].format(scale=scale)
    if not lr_folder.is_dir():
        return find_images(root / hr)
    lq = _by_name(lr_folder)
    found = [
        Files(name, path, lq.get(name, lq.get(f"{name}x{scale}")))
        for name, path in _by_name(root / hr).items()
    ]
    for name, path, match in found:
        if match is None:
            raise ValueError(f"{path}: no LR image; expected {lr_folder / name} or {name}x{scale}")
    return found


def _find_degraded(root: Path, parts: bool) -> list[Files]:
    list_images(root)  # a missing or empty folder has a sentence of its own
    folders = list(_degraded_folders(root, parts))
    if not folders:
        names = " or ".join(f"{lq} and {hq}" for lq, hq in DEGRADED.items())
        raise ValueError(f"{root}: found no pairs; expected folders {names}, in it or below")
    splits = {part for folder, _ in folders for part in folder.relative_to(root).parts} & SPLITS
    if len(splits) > 1:
        raise ValueError(f"{root}: holds {' and '.join(sorted(splits))}; expected one of them")
    return [files for lq, hq in folders for files in _matched(root, lq, hq)]


def _degraded_folders(root: Path, parts: bool) -> Iterator[tuple[Path, Path]]:
    """Folders of degraded images and of their ground truths."""
    for lq, hq in CROPS.items():
        if parts and (root / lq).is_dir() and (root / hq).is_dir():
            yield root / lq, root / hq
            return
    for path in sorted(root.rglob("*")):
        if path.name in DEGRADED and path.is_dir():
            partner = path.with_name(DEGRADED[path.name])
            if partner.is_dir():
                yield path, partner


def _matched(root: Path, lq_folder: Path, hq_folder: Path) -> list[Files]:
    lq, hq = _by_name(lq_folder), _by_name(hq_folder)
    for name in sorted({*lq} ^ {*hq}):
        path, other = (lq[name], hq_folder) if name in lq else (hq[name], lq_folder)
        raise ValueError(f"{path}: no partner; expected {other / name}")
    within = lq_folder.parent.relative_to(root)
    return [Files((within / name).as_posix(), hq[name], path) for name, path in lq.items()]


def _by_name(root: Path) -> dict[str, Path]:
    """Images by their path below root, without the suffix."""
    images: dict[str, Path] = {}
    for path in list_images(root):
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in images:
            raise ValueError(f"{path} and {images[name].name} share a name; expected one of them")
        images[name] = path
    return images


def _refuse_nested(root: Path, images: Iterable[Files]) -> None:
    """LR images of a data set further down would pass for HR."""
    lr = {folder.partition("/")[0] for folder in SCALED.values()}
    for _, path, _ in images:
        nested = set(path.relative_to(root).parts) & lr
        if nested:
            raise ValueError(f"{path}: inside {nested.pop()}; expected the folder that holds it")
