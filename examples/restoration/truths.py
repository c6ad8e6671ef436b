"""Whether all images of a folder can be ground truths.

In a layout that is not known low-quality images lie among them, and must not pass for such.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Sequence
from itertools import permutations
from pathlib import Path

import numpy as np

from .degrade import matlab_bicubic
from .images import BadImageError, image_size, read_image

LR_FOLDER = re.compile(r"(.*_)?LR([_\d].*|x\d.*|b.*)?|x\d(_.*)?|.*bicubic.*", re.IGNORECASE)
ALIKE = 0.95  # correlation above which one image is another made smaller


def check_truths(root: Path, images: Sequence[Path], names: Collection[str]) -> None:
    """Require images that can all be ground truths.

    Args:
        root: The folder they were found in or below.
        images: Their files.
        names: Of folders of ground truths; what lies beside these is something else.

    Raises:
        ValueError: For images in folders like `LR_bicubic`, `LRbicx4` or `X2`, images beside a
            folder of one of the names, or a folder that has another's images smaller.
    """
    parents = {parent for path in images for parent in path.relative_to(root).parents}
    folders = sorted(root / parent for parent in parents if parent.name)
    for folder in folders:
        if LR_FOLDER.fullmatch(folder.name):
            raise ValueError(
                f"{folder}: named as LR images are; expected the folder that holds HR and LR by "
                "names in README, or one of ground truths alone"
            )
    for truths in folders:
        if truths.name.lower() in names:
            beside = [p for p in (*folders, *images) if p.parent == truths.parent and p != truths]
            if beside:
                raise ValueError(
                    f"{truths}: found beside {beside[0].name}; expected pairs in folders by names "
                    "in README, or a folder of ground truths alone"
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
                    "HR and LR by names in README, or one of ground truths alone"
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
