"""Image files, and the photographs that scikit-image ships."""

from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import skimage
from PIL import Image as Pillow

Image: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float64]

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
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


def read_image(path: str | Path) -> Image:
    """Read an image file as uint8 RGB, (H, W, 3); gray and palettes are converted, alpha dropped.

    Raises:
        BadImageError: It is missing, truncated, no image or has more than 8 bits.
    """
    try:
        with Pillow.open(path) as file:
            if file.mode[0] in "IF":  # Pillow would clip these to 255, not rescale them
                raise ValueError(f"got {file.mode} pixels, expected 8 bits a channel")
            return np.array(file.convert("RGB"))
    except Exception as error:  # Pillow's decoders raise nearly every type on broken bytes
        raise BadImageError(f"{path}: cannot be read as an image: {error}") from error


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width by an image file's header, a hundred times faster than its pixels."""
    try:
        with Pillow.open(path) as file:
            return file.height, file.width
    except Exception as error:
        raise BadImageError(f"{path}: cannot be read as an image: {error}") from error


def write_png(image: Image, path: Path) -> None:
    """Write a PNG, at once or not at all; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")  # hidden: `list_images` passes it over
    try:
        Pillow.fromarray(image).save(partial, format="PNG")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def photographs(split: Literal["train", "held_out"]) -> dict[str, Image]:
    """The photographs that scikit-image ships in its wheel, by name; nothing is downloaded."""
    if split not in PHOTOGRAPHS:
        raise ValueError(f"got split {split!r}; expected one of {', '.join(PHOTOGRAPHS)}")
    folder = Path(skimage.__file__).parent / "data"
    return {Path(file).stem: read_image(folder / file) for file in PHOTOGRAPHS[split]}


def list_images(folder: str | Path) -> list[Path]:
    """Every image file in a folder and below, sorted; ValueError where there is none."""
    root = Path(folder)
    if not root.is_dir():
        seen = "a file" if root.exists() else "nothing"
        raise ValueError(f"{root}: found {seen}; expected a folder of images")
    files = (path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    images = sorted(path for path in files if path.is_file() and not path.name.startswith("."))
    if not images:
        raise ValueError(f"{root}: found no image; expected files {', '.join(sorted(SUFFIXES))}")
    return images
