"""The file that an interrupted run is continued from."""

import hashlib
import io
import json
import pickle
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

DIGEST = 32  # bytes of SHA-256 at the file's end; torch.load overlooks them, and altered tensors


def save(path: Path, settings: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write a checkpoint, at once or not at all.

    Args:
        path: What it held before stays until the new one is complete.
        settings: Whatever determines the run's result, as JSON can hold it.
        content: The state to continue from: tensors, numbers, text, and lists and dicts of them.
    """
    buffer = io.BytesIO()
    torch.save({"settings": json.dumps(settings), "content": dict(content)}, buffer)
    data = buffer.getvalue()
    partial = path.with_name(f"{path.name}.part")  # same folder: replace is atomic
    try:
        partial.write_bytes(data + hashlib.sha256(data).digest())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read the content of a checkpoint that was written with the same settings.

    Raises:
        RuntimeError: the file is cut short, altered or no checkpoint; names it.
        ValueError: its settings differ; names those that do.
    """
    then, content = _read(path)
    now = json.loads(json.dumps(settings))
    odd = [name for name in {**then, **now} if then.get(name) != now.get(name)]
    if odd:
        seen = ", ".join(f"{name} was {then.get(name)}, is {now.get(name)}" for name in odd)
        raise ValueError(f"{path} is of a run with other settings: {seen}")
    return content


def settings(path: Path) -> dict[str, Any]:
    """The settings that a checkpoint was written with; {} where there is none."""
    try:
        return _read(path)[0]
    except RuntimeError:
        return {}


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings and content of a checkpoint; RuntimeError as `load` says."""
    try:
        data = path.read_bytes()
        if hashlib.sha256(data[:-DIGEST]).digest() != data[-DIGEST:]:
            raise ValueError("its checksum does not fit")
        saved = torch.load(io.BytesIO(data[:-DIGEST]), map_location="cpu", weights_only=True)
        if not isinstance(saved, dict):
            raise TypeError(f"it holds a {type(saved).__name__}")
        return json.loads(saved["settings"]), dict(saved["content"])
    except (
        pickle.UnpicklingError,
        OSError,
        RuntimeError,
        ValueError,
        TypeError,
        KeyError,
    ) as error:
        raise RuntimeError(
            f"{path}: cut short, altered or not a checkpoint of this script: {error}; "
            "once it is removed the run starts anew"
        ) from error


def checksum(arrays: Iterable[Any]) -> str:
    """CRC-32 over the bytes of arrays or CPU tensors."""
    total = 0
    for array in arrays:
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return f"crc32 {total:08x}"
