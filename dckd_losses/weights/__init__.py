"""Named weights: where they are, and how they get there.

`python -m dckd_losses.weights` lists, fetches, converts, verifies and describes them. Besides the
Hugging Face Hub, `SOURCES` has other public places where the same checkpoints can be had.
"""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

from dckd_losses.checkpoint import read
from dckd_losses.mapped import mapped
from dckd_losses.weights.conversion import architecture_in, convert
from dckd_losses.weights.download import fetch
from dckd_losses.weights.places import COMPACT, NAMES, SOURCES, Source, check_promise, home, place

__all__ = [
    "COMPACT",
    "NAMES",
    "SOURCES",
    "Source",
    "convert",
    "fetch",
    "find",
    "home",
    "mapped",
    "place",
    "read",
]


def find(name_or_path: str | PathLike[str]) -> Path:
    """The file of named weights, fetched and converted on first use; a path stays as it is.

    Args:
        name_or_path: one of `NAMES`, or a path (anything with a separator or a suffix).

    Raises:
        ValueError: no name or path, or an unknown name.
        RuntimeError: the weights cannot be fetched (says which file to put where), or the file in
            their place has another network than the name promises.
    """
    if not isinstance(name_or_path, (str, PathLike)):
        kind = type(name_or_path).__name__
        raise ValueError(f"expected an encoder's name or path here, got {kind}")
    name = os.fspath(name_or_path)
    if name == "compact":
        return COMPACT
    if name in SOURCES:
        path = fetch(name)
        check_promise(name, architecture_in(path), path)
        return path
    if Path(name).suffix or os.sep in name or "/" in name or Path(name).exists():
        return Path(name)
    raise ValueError(
        f"unknown encoder {name!r}: expected one of {', '.join(NAMES)}, "
        "or the path of a .ckpt or .safetensors file"
    )
