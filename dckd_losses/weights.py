"""Named weights: where they are, and how they get there."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from dckd_losses import checkpoint
from dckd_losses.checkpoint import read

__all__ = ["NAMES", "find", "home", "read"]

COMPACT = Path(__file__).parent / "assets" / "compact.safetensors"


@dataclass(frozen=True)
class Source:
    """A taming-transformers checkpoint on the Hugging Face Hub."""

    repository: str
    file: str
    size: str
    sha256: str | None


SOURCES = {
    "vqgan-f16-1024": Source(
        "llvictorll/Maskgit-pytorch", "pretrained_maskgit/VQGAN/last.ckpt", "958 MB", None
    ),
    "vqgan-f16-16384": Source(
        "pxlpshr/pytti-models",
        "vqgan/imagenet.ckpt",
        "980 MB",
        "845a68805098cb666420d5db93df53f3a3b6dd443e6dd85c05759c5b998cd663",
    ),
}
NAMES = ("compact", *SOURCES)


def home() -> Path:
    """The folder of converted weights: the environment variable DCKD_HOME, or a cache folder."""
    return Path(os.environ.get("DCKD_HOME", "~/.cache/dckd-losses")).expanduser()


def find(name_or_path: str | PathLike[str]) -> Path:
    """The file of named weights, fetched and converted on first use; a path stays as it is.

    Args:
        name_or_path: one of `NAMES`, or a path (anything with a separator or a suffix).

    Raises:
        ValueError: an unknown name.
        RuntimeError: the weights cannot be fetched; says which file to put where.
    """
    name = os.fspath(name_or_path)
    if name == "compact":
        return COMPACT
    if name in SOURCES:
        path = home() / f"{name}.safetensors"
        return path if path.is_file() else _fetch(SOURCES[name], path)
    if Path(name).suffix or os.sep in name or "/" in name or Path(name).exists():
        return Path(name)
    raise ValueError(
        f"unknown encoder {name!r}: expected one of {', '.join(NAMES)}, "
        "or the path of a .ckpt or .safetensors file"
    )


def _fetch(source: Source, path: Path) -> Path:
    """Download a checkpoint into the Hub's cache and keep its encoder as safetensors."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        fetched = Path(hf_hub_download(source.repository, source.file))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RuntimeError(
            f"{path} is missing and {source.file} ({source.size}) of huggingface.co/"
            f"{source.repository} cannot be fetched ({type(error).__name__}). Fetch it on a "
            "machine with a network and pass its path, or set DCKD_HOME to a folder that has "
            f"{path.name}; encoder='compact' needs no download"
        ) from error
    if source.sha256 is not None and (seen := _sha256(fetched)) != source.sha256:
        raise RuntimeError(f"{fetched}: sha256 is {seen}, expected {source.sha256}")
    path.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_safetensors(read(fetched), path, source=f"{source.repository}/{source.file}")
    return path


def _sha256(path: Path) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()
