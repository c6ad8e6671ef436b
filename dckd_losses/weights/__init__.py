"""Named weights: where they are, how they get there, and how files of weights are read.

`python -m dckd_losses.weights` lists, fetches, converts, verifies and describes them. Besides the
Hugging Face Hub, `SOURCES` has other public places where the same checkpoints can be had.
"""

from __future__ import annotations

import os
from os import PathLike
from pathlib import Path

import torch
from safetensors import safe_open

from dckd_losses.network import Architecture
from dckd_losses.weights.files import COMPACT, load, read_checkpoint, refusing
from dckd_losses.weights.registry import (
    F16,
    NAMES,
    SOURCES,
    Source,
    cache_dir,
    check_architecture,
    convert,
    fetch,
    local_path,
)

__all__ = [
    "COMPACT",
    "F16",
    "NAMES",
    "SOURCES",
    "Source",
    "cache_dir",
    "convert",
    "fetch",
    "find",
    "load",
    "local_path",
    "read_checkpoint",
]


def find(name_or_path: str | PathLike[str]) -> Path:
    """The file of named weights, fetched and converted on first use; a path stays as it is.

    Args:
        name_or_path: one of `NAMES`, or a path (anything with a separator or a suffix).

    Raises:
        ValueError: no name or path, or an unknown name.
        RuntimeError: the weights cannot be fetched (says which file to put where), or their file
            has another network than the name promises.
    """
    if not isinstance(name_or_path, (str, PathLike)):
        kind = type(name_or_path).__name__
        raise ValueError(f"expected an encoder's name or path here, got {kind}")
    name = os.fspath(name_or_path)
    if name == "compact":
        return COMPACT
    if name in SOURCES:
        path = fetch(name)
        with refusing(path), safe_open(path, framework="pt") as file:  # the header alone
            shapes = {key: file.get_slice(key).get_shape() for key in file.keys()}  # noqa: SIM118
            seen = Architecture.of({k: torch.empty(v, device="meta") for k, v in shapes.items()})
        check_architecture(name, seen, path)
        return path
    if Path(name).suffix or os.sep in name or "/" in name or Path(name).exists():
        return Path(name)
    raise ValueError(
        f"unknown encoder {name!r}: expected one of {', '.join(NAMES)}, "
        "or the path of a .ckpt or .safetensors file"
    )
