"""Read and write files of weights; nothing that a file brings along is executed."""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import pickle
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import safe_open
from torch import Tensor

DIGEST = "tensors_sha256"  # metadata key under which `write_safetensors` leaves its own digest
# Where a file of torch.save has its weights, the first that is there
STATES = ("model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net")
OLD_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save before version 1.6
DTYPES = {  # with their names in safetensors, and those of their storages in torch.save's pickles
    torch.float64: ("F64", "DoubleStorage"),
    torch.float32: ("F32", "FloatStorage"),
    torch.float16: ("F16", "HalfStorage"),
    torch.bfloat16: ("BF16", "BFloat16Storage"),
    torch.int64: ("I64", "LongStorage"),
    torch.int32: ("I32", "IntStorage"),
    torch.int16: ("I16", "ShortStorage"),
    torch.int8: ("I8", "CharStorage"),
    torch.uint8: ("U8", "ByteStorage"),
    torch.bool: ("BOOL", "BoolStorage"),
}


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of the tensors, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        total.update(_bytes(tensor))
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, **metadata: str) -> None:
    """Write tensors with their digest, so that readers notice alteration; never half a file.

    A file that is there already is replaced as a whole: who has it open or mapped keeps the old
    one. The format's own library would need NumPy for it.

    Raises:
        ValueError: a tensor's dtype is none of `DTYPES`; names the tensor.
        OSError: it cannot be written.
    """
    dense = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header: dict[str, Any] = {"__metadata__": {**metadata, DIGEST: digest(dense)}}
    names, end = sorted(dense, key=lambda name: (-dense[name].itemsize, name)), 0  # aligned
    for name in names:
        tensor, start = dense[name], end
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}, which is not written to {path}")
        end += tensor.nbytes
        dtype, shape = DTYPES[tensor.dtype][0], list(tensor.shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with partial.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for name in names:
                file.write(_bytes(dense[name]))
        partial.replace(path)
    except PermissionError as error:
        raise PermissionError(
            f"{path} cannot be replaced ({error.strerror}); on Windows that also is so while an "
            "encoder that was loaded from it is alive"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata, and compare the digest where the file has one.

    The tensors show the file, which safetensors maps into memory; writing to them never writes to
    the file.

    Raises:
        RuntimeError: the file is missing, cut short, altered or of another kind; names it.
    """
    with refusing(path):
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        seen, expected = digest(tensors), metadata.get(DIGEST)
        if expected not in (None, seen):
            raise ValueError(f"sha256 of its tensors is {seen}, it was written as {expected}")
    return tensors, metadata


def read_checkpoint(path: Path, prefixes: tuple[str, ...] = ("",)) -> dict[str, Tensor]:
    """Read the tensors of any file of weights, without executing anything that it brings along.

    Args:
        path: `.safetensors`, or what `torch.save` wrote (`.pt`, `.pth`, `.ckpt`). Where the file
            has more than one set of weights, the first of `STATES` is taken.
        prefixes: only tensors whose names begin with one of these are read.

    Returns:
        The tensors of the state dict, in their own dtypes.

    Raises:
        RuntimeError: the file is missing, cut short, altered, of another kind (TorchScript and
            other archives with code among them), or its pickle wants to call something; names it.
    """
    if path.suffix == ".safetensors":
        return {k: v for k, v in read_safetensors(path)[0].items() if k.startswith(prefixes)}
    return _read_pickle(path, prefixes)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes its reader say into one kind of error."""
    if not path.is_file():
        raise RuntimeError(f"{path}: no such file")
    try:
        yield
    except Exception as error:  # damaged files make their readers stumble over anything
        size, said = path.stat().st_size, str(error).splitlines() or [type(error).__name__]
        raise RuntimeError(
            f"{path} ({size:,} bytes) is cut short, altered or not such weights: {said[0]}"
        ) from error


def _bytes(tensor: Tensor) -> Any:
    """A dense tensor's memory as a buffer, without NumPy, which torch does not require."""
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()) if tensor.nbytes else b""


# Files of torch.save: a pickle that describes tensors, and a record of bytes for each storage.
# The pickle is read by Python's own machine, but every name in it gives something of this file.


@dataclass
class Storage:
    """The bytes that tensors of a pickle refer to."""

    key: Any
    dtype: torch.dtype
    numel: int

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


@dataclass
class StoredTensor:
    """A tensor as a pickle describes it; nothing of that can be trusted."""

    storage: Any
    dtype: Any
    offset: Any
    size: Any
    stride: Any
    plain: bool = True


class PickleStub(dict[Any, Any]):
    """Stands for whatever else a pickle names: a callback, a settings node, a function.

    It can be made, filled and given a state, and none of that does anything. A call, other than
    of what makes plain values, refuses the file: whoever opened it elsewhere would run it.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *args: object, **kwargs: object) -> None:
        name = type(self).__name__
        module, _, last = name.rpartition(".")
        is_library_class = last[:1].isupper() and module.split(".")[0] not in STDLIB
        if not (name.startswith(VALUES) or is_library_class):
            raise pickle.UnpicklingError(f"the file wants to call {name}")

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    extend = add = append


STDLIB = {*sys.stdlib_module_names, "__builtin__", "copy_reg"}  # and Python 2's names
PLAIN = ("bytearray", "complex", "dict", "frozenset", "int", "list", "object", "set", "slice")
# What makes plain values: dates, paths, NumPy's scalars and arrays, random states, ...
VALUES = (
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in PLAIN),
    *("_codecs.encode", "collections.", "copy_reg._reconstructor", "copyreg._reconstructor"),
    *("datetime.", "decimal.Decimal", "fractions.Fraction", "functools.partial", "numpy."),
    *("pathlib.", "random.Random", "torch.Size", "torch.device", "torch._tensor._rebuild"),
    *("torch._utils._rebuild", "uuid.UUID", "zoneinfo.ZoneInfo"),
)


def _typed(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> StoredTensor:
    dtype = storage.dtype if isinstance(storage, Storage) else None
    return StoredTensor(storage, dtype, offset, size, stride, plain=not any(more[2:]))


def _untyped(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> StoredTensor:
    return StoredTensor(storage, more[2], offset, size, stride, plain=not any(more[3:]))


def _meta(dtype: Any, size: Any, stride: Any, *more: Any) -> StoredTensor:
    return StoredTensor(None, dtype, 0, size, stride)


KNOWN: dict[str, Any] = {  # all that a pickle's names can give, PickleStub aside
    "collections.OrderedDict": OrderedDict,
    "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, args, state: rebuild(*args),
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_parameter": lambda tensor, *more: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *more: tensor,
    "torch._utils._rebuild_tensor": _typed,
    "torch._utils._rebuild_tensor_v2": _typed,
    "torch._utils._rebuild_tensor_v3": _untyped,
    "torch.storage.UntypedStorage": torch.uint8,
    **{f"torch.{storage}": dtype for dtype, (_, storage) in DTYPES.items()},
}


class PickleReader(pickle._Unpickler):
    """Reads a pickle of torch.save; not in C, where one damaged index takes all memory there is."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self.storages: dict[Any, Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        dtype = vars(torch).get(name) if module == "torch" else None
        if isinstance(dtype, torch.dtype):
            return dtype
        return KNOWN.get(full) or type(full, (PickleStub,), {})

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] != "storage":
            return pid[1]  # an old file's module: its class
        _, dtype, key, _, numel, *view = pid
        if any(view) or not isinstance(dtype, torch.dtype) or type(numel) is not int or numel < 0:
            raise ValueError(f"storage {key} is not a plain one")
        return self.storages.setdefault(key, Storage(key, dtype, numel))


def _read_pickle(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    records: dict[Any, bytearray] = {}
    with refusing(path), path.open("rb") as file:
        content, read = (_open_zip if zipfile.is_zipfile(path) else _open_old)(file)
        left = path.stat().st_size
        for name, value in _state(content).items():
            if not isinstance(name, str) or not name.startswith(prefixes):
                continue
            if isinstance(value, StoredTensor):
                storage = _check(name, value)
                if storage.key not in records:
                    left -= storage.nbytes
                    if left < 0:
                        raise ValueError(f"{name}: its storage ends beyond the file")
                    records[storage.key] = read(name, storage)
                flat = torch.frombuffer(records[storage.key] or bytearray(8), dtype=value.dtype)
                tensors[name] = flat.as_strided(value.size, value.stride, value.offset)
            elif type(value).__name__.startswith("torch."):
                raise ValueError(f"{name} is not a plain tensor but {type(value).__name__}")
    return tensors


def _state(content: Any) -> dict[Any, Any]:
    """The set of weights in what a file holds."""
    if isinstance(content, dict):
        content = next((content[k] for k in STATES if isinstance(content.get(k), dict)), content)
        if len(content) == 1 and isinstance(only := next(iter(content.values())), dict):
            content = only
    if not isinstance(content, dict):
        raise ValueError(f"it holds no state_dict but one {type(content).__name__}")
    return content


def _check(name: str, tensor: StoredTensor) -> Storage:
    """Refuse a tensor that its storage does not hold."""
    storage, size, stride = tensor.storage, tensor.size, tensor.stride
    if storage is None:
        raise ValueError(f"{name} is a meta tensor, which has no values")
    if not (
        tensor.plain and isinstance(storage, Storage) and isinstance(tensor.dtype, torch.dtype)
    ):
        raise ValueError(f"{name} is not a plain tensor")
    if len(size) != len(stride) or any(
        type(number) is not int or number < 0 for number in (tensor.offset, *size, *stride)
    ):
        raise ValueError(f"{name} has no such shape as {size} with strides {stride}")
    end = tensor.offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1
    if all(size) and end * tensor.dtype.itemsize > storage.nbytes:
        raise ValueError(f"{name} ends beyond its storage of {storage.nbytes:,} bytes")
    return storage


Content = tuple[Any, Callable[[str, Storage], bytearray]]  # and how a tensor's storage is read


def _open_zip(file: BinaryIO) -> Content:
    archive = zipfile.ZipFile(file)
    names = set(archive.namelist())
    roots = [name[: -len("data.pkl")] for name in names if name.partition("/")[2] == "data.pkl"]
    if len(roots) != 1:
        raise ValueError("it is an archive, but not one of torch.save")
    root = roots[0]
    if any(name.startswith((f"{root}code/", f"{root}constants.pkl")) for name in names):
        raise ValueError("it is TorchScript, whose code would run: save a state_dict instead")
    pickled = archive.getinfo(f"{root}data.pkl")
    if pickled.file_size > os.fstat(file.fileno()).st_size:
        raise ValueError("its pickle is packed to less than it is")
    if f"{root}byteorder" in names and archive.open(f"{root}byteorder").read(8) != b"little":
        raise ValueError("it was written on a big-endian machine")

    def read(name: str, storage: Storage) -> bytearray:
        entry = archive.getinfo(f"{root}data/{storage.key}")
        if entry.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, which torch.save does not do")
        if entry.file_size != storage.nbytes:
            raise ValueError(
                f"{name} has a record of {entry.file_size:,} bytes; {storage.nbytes:,} are expected"
            )
        return bytearray(archive.read(entry))  # which compares the checksum

    return PickleReader(io.BytesIO(archive.read(pickled))).load(), read


def _open_old(file: BinaryIO) -> Content:
    """As torch.save wrote before its version 1.6: pickles, then storages one after the other."""
    magic, _, system = (PickleReader(file).load() for _ in range(3))
    if magic != OLD_MAGIC or not system["little_endian"]:
        raise ValueError("it is no file of torch.save")
    reader = PickleReader(file)
    content, keys = reader.load(), PickleReader(file).load()
    starts, end = {}, file.tell()
    for key in keys:
        starts[key] = end
        end += 8 + reader.storages[key].nbytes

    def read(name: str, storage: Storage) -> bytearray:
        file.seek(starts[storage.key])
        numel = int.from_bytes(file.read(8), "little")
        data = bytearray(file.read(storage.nbytes))
        if numel != storage.numel or len(data) != storage.nbytes:
            raise ValueError(f"{name} has a record of another size than its storage")
        return data

    return content, read
