"""Tensors of a file that is mapped into memory, once however often it is loaded."""

from __future__ import annotations

import json
import math
import mmap
import os
from pathlib import Path
from weakref import WeakValueDictionary

import torch
from safetensors import safe_open
from torch import Tensor

from dckd_losses.checkpoint import DIGEST, PREFIXES, digest, read, refusing

# Files that live tensors show, and whose digest has been checked, by device, inode, size and time
_FILES: WeakValueDictionary[tuple[int, ...], mmap.mmap] = WeakValueDictionary()


def mapped(path: Path) -> dict[str, Tensor]:
    """Read the encoder's tensors as float32, for networks that never write to them.

    Float32 files that `write_safetensors` made are mapped into memory, not copied: a file that was
    loaded before, and of which a tensor is still alive, is neither mapped nor hashed again. Other
    files are copied as by `read`, for nobody says that they are only ever replaced as a whole.

    The tensors of one file share memory over all loads, so writing to them changes every network
    that shows them (never the file). What copies them, such as `copy.deepcopy`, `pickle` or a move
    to another device or dtype, separates from them.

    Args:
        path: as for `read`.

    Returns:
        `encoder.*`, `quant_conv.*` and `quantize.*`.

    Raises:
        RuntimeError: as `read`.
    """
    if path.suffix == ".safetensors":
        with refusing(path):
            tensors = _map(path) if _can_be_mapped(path) else {}
        wanted = {k: v for k, v in tensors.items() if k.startswith(PREFIXES)}
        if wanted:
            return wanted
    return read(path)


def _can_be_mapped(path: Path) -> bool:
    with safe_open(path, framework="pt") as file:  # which looks at the header closely
        dtypes = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        return dtypes == {"F32"} and DIGEST in (file.metadata() or {})


def _map(path: Path) -> dict[str, Tensor]:
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        key = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        known = _FILES.get(key)
        if known is not None:
            return _views(known)[0]
        fresh = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
    tensors, metadata = _views(fresh)
    seen, expected = digest(tensors), metadata[DIGEST]
    if seen != expected:
        raise ValueError(f"sha256 of its tensors is {seen}, it was written as {expected}")
    return _views(_FILES.setdefault(key, fresh))[0]  # another thread may have been faster


def _views(data: mmap.mmap) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors that show a mapped safetensors file and keep it mapped, and the file's metadata."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata: dict[str, str] = header.pop("__metadata__", {})
    tensors = {
        name: torch.frombuffer(
            data,
            dtype=torch.float32,
            count=math.prod(entry["shape"]),
            offset=start + entry["data_offsets"][0],
        ).view(entry["shape"])
        for name, entry in header.items()
    }
    return tensors, metadata
