"""Photographs, paired data sets and random crops for super-resolution."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import skimage
from PIL import Image as Pillow
from torch import Tensor
from torch.utils.data import Dataset

from .degrade import Image, matlab_bicubic
from .metrics import to_tensor

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
LAYOUTS = {"HR": "LR_bicubic", "DIV2K_train_HR": "DIV2K_train_LR_bicubic"}
PHOTOGRAPHS = {
    # motorcycle_left and _right are one scene from two cameras: they must stay on one side.
    "train": (
        *("astronaut.png", "brick.png", "camera.png", "coins.png", "grass.png", "gravel.png"),
        *("motorcycle_left.png", "motorcycle_right.png"),
    ),
    "held_out": ("chelsea.png", "coffee.png", "rocket.jpg"),
}


class BadImageError(ValueError):
    """A file that is no readable 8-bit image; the message names the file and the cause."""


class Pair(NamedTuple):
    """A low-quality image and its ground truth, uint8 RGB: (h, w, 3) and (h s, w s, 3)."""

    name: str
    lq: Image
    hq: Image


def read_image(path: str | Path) -> Image:
    """Read an image file as uint8 RGB, (H, W, 3); gray and palettes are converted, alpha dropped.

    Raises:
        BadImageError: For a missing, truncated, non-image or more-than-8-bit file.
    """
    try:
        with Pillow.open(path) as file:
            if file.mode[0] in "IF":  # Pillow would clip these to 255, not rescale them
                raise ValueError(f"got {file.mode} pixels, expected 8 bits a channel")
            return np.array(file.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise nearly every type on broken bytes
        raise BadImageError(f"{path}: cannot be read as an image: {error}") from error


def photographs(split: Literal["train", "held_out"]) -> dict[str, Image]:
    """The photographs that scikit-image ships in its wheel, by name; nothing is downloaded."""
    if split not in PHOTOGRAPHS:
        raise ValueError(f"got split {split!r}; expected one of {', '.join(PHOTOGRAPHS)}")
    folder = Path(skimage.__file__).parent / "data"
    return {Path(file).stem: read_image(folder / file) for file in PHOTOGRAPHS[split]}


def list_images(folder: str | Path) -> list[Path]:
    """Every image file in a folder and below, sorted.

    Raises:
        ValueError: For a missing folder, something that is no folder, or one without images.
    """
    root = Path(folder)
    if not root.is_dir():
        seen = "a file" if root.exists() else "nothing"
        raise ValueError(f"{root}: found {seen}; expected a folder of images")
    files = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    images = sorted(path for path in files if path.is_file() and not path.name.startswith("."))
    if not images:
        raise ValueError(f"{root}: found no image; expected files {', '.join(sorted(SUFFIXES))}")
    return images


def pairs_from_images(images: Mapping[str, Image], scale: int) -> list[Pair]:
    """Shrink each image (uint8 RGB) by MATLAB's bicubic, after cropping it to whole LR pixels."""
    return [_paired(name, image, None, scale) for name, image in images.items()]


def load_pairs(folder: str | Path, scale: int, *, skip_bad: bool = False) -> list[Pair]:
    """Load a super-resolution data set into memory, as uint8.

    Reads `HR` with `LR_bicubic/X{scale}`, `DIV2K_train_HR` with `DIV2K_train_LR_bicubic/X{scale}`,
    or all images in and below a plain folder. LR is made by MATLAB's bicubic where there is none.

    Args:
        folder: The data set. An LR file has its HR file's name, or that and `x{scale}`.
        scale: HR size over LR size; HR is cropped to LR size times this.
        skip_bad: Leave out unreadable files, with a warning on stderr, instead of stopping.

    Raises:
        BadImageError: For an unreadable file.
        ValueError: For a missing or empty folder, HR without LR, sizes that do not fit the scale.
    """
    pairs = []
    for name, hq, lq in _find(Path(folder), scale):
        try:
            pairs.append(_paired(name, read_image(hq), lq, scale, source=hq))
        except BadImageError as error:
            if not skip_bad:
                raise BadImageError(f"{error} (--skip-bad goes on without it)") from error
            print(f"warning: left out {error}", file=sys.stderr)
    if not pairs:
        raise ValueError(f"{folder}: every image is unreadable; expected at least one good one")
    return pairs


def _find(root: Path, scale: int) -> list[tuple[str, Path, Path | None]]:
    """Name, HR file and LR file, None where LR has to be made, of each pair in the data set."""
    hr = next((name for name in LAYOUTS if (root / name).is_dir()), None)
    hq = _by_name(root / hr if hr else root)
    if hr is None:
        _refuse_nested(root, hq)
        return [(name, path, None) for name, path in hq.items()]
    lr_folder = root / LAYOUTS[hr] / f"X{scale}"
    if not lr_folder.is_dir():
        return [(name, path, None) for name, path in hq.items()]
    lq = _by_name(lr_folder)
    found = [(name, path, lq.get(name, lq.get(f"{name}x{scale}"))) for name, path in hq.items()]
    for name, path, match in found:
        if match is None:
            raise ValueError(f"{path}: no LR image; expected {lr_folder / name} or {name}x{scale}")
    return found


def _by_name(root: Path) -> dict[str, Path]:
    """Images by their path below root, without the suffix."""
    images: dict[str, Path] = {}
    for path in list_images(root):
        name = path.relative_to(root).with_suffix("").as_posix()
        if name in images:
            raise ValueError(f"{path} and {images[name].name} share a name; expected one of them")
        images[name] = path
    return images


def _refuse_nested(root: Path, images: Mapping[str, Path]) -> None:
    """LR images of a data set further down would pass for HR."""
    for path in images.values():
        nested = set(path.relative_to(root).parts) & {*LAYOUTS.values()}
        if nested:
            raise ValueError(f"{path}: inside {nested.pop()}; expected the folder that holds it")


def _paired(name: str, hq: Image, lq: Path | None, scale: int, source: Path | None = None) -> Pair:
    if scale < 1:
        raise ValueError(f"got scale {scale}; expected 1 or more")
    height, width = (side // scale for side in hq.shape[:2])
    seen = f"{source or name}: HR is {hq.shape[1]}x{hq.shape[0]}"
    if not height or not width:
        raise ValueError(f"{seen}; expected at least {scale} a side for scale {scale}")
    hq = hq[: height * scale, : width * scale]
    made = matlab_bicubic(hq, 1 / scale) if lq is None else read_image(lq)
    if made.shape[:2] != (height, width):
        raise ValueError(
            f"{seen}, {lq} is {made.shape[1]}x{made.shape[0]}; "
            f"expected {width}x{height} for scale {scale}"
        )
    return Pair(name, made, hq)


class RandomCrops(Dataset[tuple[Tensor, Tensor]]):
    """Aligned random crops, each flipped and turned at random.

    Item i depends on (seed, i) and nothing else: workers, order and earlier items do not matter.
    Images are drawn by their number of pixels, so small ones are not over-represented.

    Args:
        pairs: The images.
        crop: LR pixels a side.
        scale: HR size over LR size.
        length: Number of items.
        seed: 0 or more.

    Shape:
        Items: float32 in [0, 1], (3, crop, crop) and (3, crop scale, crop scale).

    Raises:
        ValueError: Where an image is smaller than the crop, or there is none.
    """

    def __init__(self, pairs: list[Pair], *, crop: int, scale: int, length: int, seed: int) -> None:
        if not pairs:
            raise ValueError("got no pairs; expected at least one")
        for name, lq, _ in pairs:
            if min(lq.shape[:2]) < crop:
                raise ValueError(
                    f"{name}: LR is {lq.shape[1]}x{lq.shape[0]}; expected {crop}x{crop} or more"
                )
        self.pairs, self.crop, self.scale = pairs, crop, scale
        self.length, self.seed = length, seed
        pixels = np.array([lq.shape[0] * lq.shape[1] for _, lq, _ in pairs])
        self.share = pixels / pixels.sum()

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Crops of LR and HR; IndexError outside [0, length)."""
        if not 0 <= index < self.length:
            raise IndexError(f"got item {index}; expected 0 to {self.length - 1}")
        rng = np.random.default_rng((self.seed, index))
        _, lq, hq = self.pairs[rng.choice(len(self.pairs), p=self.share)]
        top, left = (int(rng.integers(side - self.crop + 1)) for side in lq.shape[:2])
        turns, flip = int(rng.integers(4)), 1 - 2 * int(rng.integers(2))

        def cut(image: Image, unit: int) -> Tensor:
            y, x, size = top * unit, left * unit, self.crop * unit
            return to_tensor(np.rot90(image[y : y + size, x : x + size], turns)[:, ::flip])

        return cut(lq, 1), cut(hq, self.scale)
