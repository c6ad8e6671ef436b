"""Where trained teachers can be had, and how they get here."""

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import torch
from filelock import FileLock

from dckd_losses.weights import home

SWINIR = "https://github.com/JingyunLiang/SwinIR/releases/download/v0.0/001_classicalSR_DIV2K_s48w8"
RESTORMER = "https://github.com/swz30/Restormer/releases/download/v1.0"
NAFNET = "https://huggingface.co/nyanko7/nafnet-models/resolve/main"  # a mirror, not the authors'


@dataclass(frozen=True)
class Weights:
    """Where a trained teacher can be had.

    Attributes:
        backbone: Its network's name.
        scale: Output size over input size.
        url: Of the file.
        sha256: Of the file, where it has been published.
    """

    backbone: str
    scale: int
    url: str
    sha256: str | None = None


KNOWN = {  # the paper's teachers; RCAN's lie in a Google Drive folder, which has no plain address
    "swinir-x2": Weights("swinir-teacher", 2, f"{SWINIR}_SwinIR-M_x2.pth"),
    "swinir-x3": Weights("swinir-teacher", 3, f"{SWINIR}_SwinIR-M_x3.pth"),
    "swinir-x4": Weights(
        "swinir-teacher",
        4,
        f"{SWINIR}_SwinIR-M_x4.pth",
        "129dc773ba2d4c07f3eb0bb116fbe692011b7cc072d9ca12797cd3748198610a",
    ),
    "nafnet-gopro": Weights(
        "nafnet-teacher",
        1,
        f"{NAFNET}/NAFNet-GoPro-width32.pth",
        "19394e6155d12ef6371d1d57496f87f0ec88f92bdffa27c0792690722d5d1a5c",
    ),
    "restormer-gopro": Weights("restormer-teacher", 1, f"{RESTORMER}/motion_deblurring.pth"),
    "restormer-rain13k": Weights("restormer-teacher", 1, f"{RESTORMER}/deraining.pth"),
}


def fetch(url: str, sha256: str | None = None) -> Path:
    """The file behind a URL, in the folder `teachers` of DCKD_HOME; only the first use fetches it.

    It comes by torch.hub, under its name once it is complete. One process fetches while the others
    wait.

    Args:
        url: Of a file.
        sha256: That it has to have.

    Raises:
        RuntimeError: It cannot be fetched, or has another sha256; nothing of it is kept.
    """
    name = PurePosixPath(urlsplit(url).path).name
    # two files of one name are two files
    path = home() / "teachers" / f"{hashlib.sha256(url.encode()).hexdigest()[:8]}-{name}"
    if path.is_file():
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(f".{path.name}.lock")):
            if not path.is_file():
                show = sys.stderr.isatty()
                torch.hub.download_url_to_file(url, str(path), sha256, progress=show)
    except Exception as error:  # the system's, urllib's, torch.hub's
        raise RuntimeError(
            f"{url} cannot be fetched ({type(error).__name__}: {error}): fetch it on a machine "
            f"with a network and pass its path, or put it here as {path}"
        ) from error
    return path
