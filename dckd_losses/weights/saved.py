"""Read the tensors of a file that torch.save wrote: a pickle, and a record of bytes a storage."""

from __future__ import annotations

import io
import math
import mmap
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from dckd_losses.weights.pickles import PickleReader, PickleStub, Storage, StoredTensor

# Where a file of torch.save has its weights, the first that is there
STATES = ("model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net")
OLD_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save before version 1.6
NOT_WEIGHTS = "it is not a file of torch.save or safetensors"
MAX_INT = 2**63 - 1  # of a tensor's sizes
Content = tuple[Any, Callable[[Storage], bytes]]  # of a file, and what reads a storage's bytes


def read_saved(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    """Read the tensors of a file of `torch.save` whose names begin with one of these.

    Raises:
        Exception: of any kind, for a file that is damaged or of another kind.
    """
    tensors: dict[str, Tensor] = {}
    records: dict[Any, bytearray] = {}
    with path.open("rb") as file:
        start, file_size = file.read(4), os.fstat(file.fileno()).st_size
        file.seek(0)
        if start == b"PK\x03\x04":
            content, read = _open_zip(file)
        elif start[:1] == pickle.PROTO:
            whole = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            content, read = _open_old(whole)
        else:
            raise ValueError(NOT_WEIGHTS)
        for name, value in _flat(_state(content), set()):
            if not name.startswith(prefixes):
                continue
            if isinstance(value, StoredTensor):
                storage = _check(name, value, file_size)
                if storage.key not in records:
                    records[storage.key] = _read(name, storage, read)
                record = records[storage.key] or bytearray(16)  # an empty one: torch wants some
                flat = torch.frombuffer(record, dtype=value.dtype)
                tensors[name] = flat.as_strided(value.size, value.stride, value.offset)
            elif type(value).__name__.startswith("torch."):
                raise ValueError(f"{name} is not a plain tensor but {type(value).__name__}")
    return tensors


def _state(content: Any) -> dict[Any, Any]:
    """The set of weights in what a file holds."""
    if isinstance(content, dict):
        found = (content.get(key) for key in STATES)
        content = next((state for state in found if isinstance(state, dict) and state), content)
        if len(content) == 1 and isinstance(only := next(iter(content.values())), dict):
            content = only
    if not isinstance(content, dict) or (isinstance(content, PickleStub) and not content):
        kind = type(content).__name__
        raise ValueError(f"it holds no state_dict but one {kind}: save what state_dict() gives")
    return content


def _flat(content: dict[Any, Any], seen: set[int]) -> Iterator[tuple[str, Any]]:
    """What a dictionary and those in it hold, by dotted names; each dictionary once."""
    seen.add(id(content))
    for name, value in content.items():
        if not isinstance(name, str):
            continue
        if not isinstance(value, dict) or isinstance(value, PickleStub):
            yield name, value
        elif id(value) not in seen:
            yield from ((f"{name}.{inner}", each) for inner, each in _flat(value, seen))


def _check(name: str, tensor: StoredTensor, file_size: int) -> Storage:
    """Refuse a tensor that its storage does not hold, or that is larger than the whole file."""
    storage, size, stride = tensor.storage, tensor.size, tensor.stride
    if storage is None:
        raise ValueError(f"{name} is a meta tensor, which has no values")
    if not (
        isinstance(storage, Storage)
        and tensor.plain
        and all(isinstance(dtype, torch.dtype) for dtype in (storage.dtype, tensor.dtype))
    ):
        raise ValueError(f"{name} is not a plain tensor")
    if not (
        all(isinstance(numbers, (tuple, list)) for numbers in (size, stride))
        and len(size) == len(stride)
        and all(
            type(number) is int and 0 <= number <= MAX_INT
            for number in (storage.numel, tensor.offset, *size, *stride)
        )
    ):
        raise ValueError(f"{name} has no valid shape, strides and offset")
    end = tensor.offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1
    if all(size) and end * tensor.dtype.itemsize > storage.nbytes:
        raise ValueError(f"{name} ends beyond its storage of {storage.nbytes:,} bytes")
    if math.prod(size) * tensor.dtype.itemsize > file_size:  # repeated by strides of zero
        raise ValueError(f"{name} is larger than the whole file")
    return storage


def _read(name: str, storage: Storage, read: Callable[[Storage], bytes]) -> bytearray:
    """The bytes of a tensor's storage."""
    try:
        record = read(storage)
    except Exception as error:  # what zipfile raises depends on what is wrong
        ours = type(error) is ValueError
        said = str(error) if ours else "is missing, cut short or altered"
        raise ValueError(f"{name}'s record {said}") from error
    if len(record) != storage.nbytes:
        raise ValueError(
            f"{name}'s record has {len(record):,} bytes; {storage.nbytes:,} are expected"
        )
    return bytearray(record)


def _open_zip(file: BinaryIO) -> Content:
    try:
        archive = zipfile.ZipFile(file)
    except Exception as error:  # damage leads Python's reader astray
        raise ValueError("its zip archive is cut short or damaged") from error
    names, size = archive.namelist(), os.fstat(file.fileno()).st_size
    roots = [name[: -len("data.pkl")] for name in names if name.partition("/")[2] == "data.pkl"]
    if len(roots) != 1:
        raise ValueError(NOT_WEIGHTS)
    root = roots[0]
    if any(name.startswith((f"{root}code/", f"{root}constants.pkl")) for name in names):
        raise ValueError("it is TorchScript, whose code would run: save a state_dict instead")
    pickled = archive.getinfo(f"{root}data.pkl")
    if sum(entry.compress_size for entry in archive.infolist()) > size or pickled.file_size > size:
        raise ValueError("it claims to hold more than it has bytes")
    if f"{root}byteorder" in names and archive.open(f"{root}byteorder").read(8) != b"little":
        raise ValueError("it was written on a big-endian machine")

    def read(storage: Storage) -> bytes:
        entry = archive.getinfo(f"{root}data/{storage.key}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError("is compressed, which torch.save does not do")
        return archive.read(entry)  # which compares the checksum

    return PickleReader(io.BytesIO(archive.read(pickled))).load(), read


def _open_old(file: mmap.mmap) -> Content:
    """As torch.save wrote before its version 1.6: pickles, then storages one after the other.

    Mapped, as a file's own `read` takes the memory that a damaged length asks for.
    """
    if PickleReader(file).load() != OLD_MAGIC:
        raise ValueError(NOT_WEIGHTS)
    _, system = PickleReader(file).load(), PickleReader(file).load()
    if not system["little_endian"]:
        raise ValueError("it was written on a big-endian machine")
    reader = PickleReader(file)
    content, keys = reader.load(), PickleReader(file).load()
    starts, end = {}, file.tell()
    for key in keys:
        starts[key] = end
        end += 8 + reader.storages[key].nbytes

    def read(storage: Storage) -> bytes:
        file.seek(starts[storage.key])
        if int.from_bytes(file.read(8), "little") != storage.numel:
            raise ValueError("has another number of values than its storage")
        return file.read(storage.nbytes)

    return content, read
