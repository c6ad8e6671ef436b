"""Image files, and the photographs that scikit-image ships."""

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import skimage
from PIL import Image as Pillow
from PIL import ImageOps

from ..training.checkpoint import write_whole

Image: TypeAlias = npt.NDArray[np.uint8]
Floats: TypeAlias = npt.NDArray[np.float64]

SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"}  # Pillow's, of 8 bits or less
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information", "__pycache__"}
ORIENTATION, TURNED = 0x0112, {5, 6, 7, 8}  # the EXIF tag, and its values that swap the sides
TAIL = 2**16  # bytes at a PNG's end in which EXIF may lie, too
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
    """Read an image file as uint8 RGB, (H, W, 3), the way up that its EXIF orientation says.

    Gray images and palettes are converted, and alpha is dropped.

    Raises:
        BadImageError: It is missing, truncated or no image, or has more than 8 bits a channel,
            colours that are not gray, RGB or a palette, or several frames or pages.
    """
    with _opened(path) as file:
        return np.array(ImageOps.exif_transpose(file).convert("RGB"))


def image_size(path: str | Path) -> tuple[int, int]:
    """Height and width as `read_image` has them, by the file's header: a hundred times faster."""
    with _opened(path) as file:
        width, height = file.size
        turned = file.format != "TIFF" and _orientation(file, Path(path)) in TURNED
        return (width, height) if turned else (height, width)


def _orientation(file: Pillow.Image, path: Path) -> int:
    """The EXIF orientation; of a PNG Pillow would read all pixels, in case EXIF comes after."""
    if file.format == "PNG" and "exif" not in file.info:
        with path.open("rb") as raw:
            raw.seek(max(0, path.stat().st_size - TAIL))
            if b"eXIf" not in raw.read():
                return int(Pillow.Image.getexif(file).get(ORIENTATION, 1))  # of XMP
    return int(file.getexif().get(ORIENTATION, 1))


@contextmanager
def _opened(path: str | Path) -> Iterator[Pillow.Image]:
    """An image file of a kind that is read right."""
    try:
        with Pillow.open(path) as file:
            if file.mode[0] in "IF" or (file.format != "BMP" and ";16" in str(file.tile)):
                raise ValueError("got more than 8 bits a channel; expected 8")
            if file.mode not in MODES:
                raise ValueError(f"got {file.mode} colours; expected gray, RGB or a palette")
            frames = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
            if frames > 1:  # MPO is a camera's JPEG with previews
                raise ValueError(f"got {frames} frames or pages; expected one")
            yield file
    except Exception as error:  # Pillow's decoders raise nearly every type on broken bytes
        raise BadImageError(f"{path}: cannot be read as an image: {error}") from error


def write_png(image: Image, path: Path) -> None:
    """Write a PNG, at once or not at all; missing folders are made."""
    buffer = io.BytesIO()
    Pillow.fromarray(image).save(buffer, format="PNG")
    write_whole(path, buffer.getvalue())


def photographs(split: Literal["train", "held_out"]) -> dict[str, Image]:
    """The photographs that scikit-image ships in its wheel, by name; nothing is downloaded."""
    if split not in PHOTOGRAPHS:
        raise ValueError(f"got split {split!r}; expected one of {', '.join(PHOTOGRAPHS)}")
    folder = Path(skimage.__file__).parent / "data"
    return {Path(file).stem: read_image(folder / file) for file in PHOTOGRAPHS[split]}


def list_images(folder: str | Path) -> list[Path]:
    """Every image file in a folder and below, sorted.

    Linked folders are followed, each folder once. Hidden files and folders and those of operating
    systems are passed over.

    Raises:
        ValueError: There is no image, or a link leads nowhere.
        OSError: A folder below cannot be read.
    """
    if folder == "":
        raise ValueError("got an empty path; expected a folder of images")
    root = Path(folder)
    if not root.is_dir():
        seen = "a file" if root.exists() else "nothing"
        raise ValueError(f"{root}: found {seen}; expected a folder of images")

    def fail(error: OSError) -> None:
        raise error

    images, visited = [], set()
    for parent, folders, files in os.walk(root, followlinks=True, onerror=fail):
        real = os.path.realpath(parent)
        if real in visited:  # a link to a folder above, or to one that was seen
            folders.clear()
            continue
        visited.add(real)
        folders[:] = sorted(f for f in folders if f[0] != "." and f not in SYSTEM_FOLDERS)
        for path in (Path(parent, name) for name in files if name[0] != "."):
            if path.suffix.lower() in SUFFIXES:
                images.append(path)
            elif path.is_symlink() and not path.exists():
                raise ValueError(f"{path}: this link leads nowhere; expected a file or a folder")
    if not images:
        raise ValueError(f"{root}: found no image; expected files {', '.join(sorted(SUFFIXES))}")
    return sorted(images)
