"""The file that an interrupted run is continued from."""

import hashlib
import io
import json
import pickle
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

DIGEST = 32  # bytes of SHA-256 at the file's end; torch.load overlooks them, and altered tensors


def save(path: Path, settings: Mapping[str, Any], content: Mapping[str, Any]) -> None:
    """Write a checkpoint, at once or not at all; a folder that was lost is made again.

    Args:
        path: What it held before stays until the new one is complete.
        settings: Whatever determines the run's result, as JSON can hold it.
        content: The state to continue from: tensors, numbers, text, and lists and dicts of them.

    Raises:
        OSError: It cannot be written; names it.
    """
    buffer = io.BytesIO()
    torch.save({"settings": json.dumps(settings), "content": dict(content)}, buffer)
    data = buffer.getvalue()
    try:
        write_whole(path, data + hashlib.sha256(data).digest())
    except OSError as error:
        if path.exists():
            error.strerror = f"{error.strerror}; the one before is kept, --resume goes on from it"
        raise


def write_whole(path: Path, data: bytes) -> None:
    """Write a file at once or not at all; OSError names it. Missing folders are made."""
    special = path.is_symlink() or (path.exists() and not path.is_file())  # such as /dev/stdout
    partial = path if special else path.with_name(f"{path.name}.part")  # same folder: atomic
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        partial.replace(path)  # nothing for a special file
    except OSError as error:
        raise OSError(error.errno, f"cannot be written ({error.strerror})", str(path)) from error
    finally:
        if not special:
            with suppress(OSError):
                partial.unlink()


def put_aside(path: Path) -> None:
    """Rename an old run's checkpoint by its step, so that no shorter run's takes its place."""
    try:
        step = str(_read(path)[1].get("step"))
    except RuntimeError:
        step = "unreadable"
    path.replace(path.with_name(f"{path.stem}.old-{step}{path.suffix}"))


def load(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Read the content of a checkpoint that was written with the same settings.

    Raises:
        RuntimeError: the file is cut short, altered or no checkpoint; names it.
        ValueError: its settings differ; names those that do. Data may: see
            `RandomCrops.continue_from`.
    """
    then, content = _read(path)
    now = json.loads(json.dumps(settings))
    odd = [name for name in {**then, **now} if then.get(name) != now.get(name) and name != "data"]
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
    except Exception as error:  # an altered file whose digest was made anew raises anything
        said = str(error)
        if isinstance(error, pickle.UnpicklingError):  # torch's advice is to execute it
            said = "it holds more than tensors, numbers and text"
        raise RuntimeError(
            f"{path}: cut short, altered or not a checkpoint of this script: {said}; "
            "once it is removed the run starts anew"
        ) from error


def checksum(arrays: Iterable[Any]) -> str:
    """CRC-32 over the bytes of arrays or CPU tensors."""
    total = 0
    for array in arrays:
        total = zlib.crc32(np.ascontiguousarray(array).data, total)
    return f"crc32 {total:08x}"
