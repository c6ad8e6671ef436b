"""Read what torch.save wrote, without executing anything of it.

Such a file is a pickle that describes tensors, and a record of bytes for each storage. Python's own
machine reads the pickle, but a name in it gives no more than a dtype, an `OrderedDict`, one of
`REBUILD` or a stub.
"""

from __future__ import annotations

import builtins
import functools
import io
import math
import mmap
import os
import pickle
import re
import sys
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import torch
from torch import Tensor

# Where a file of torch.save has its weights, the first that is there
STATES = ("model_state_dict", "state_dict", "params_ema", "params-ema", "params", "model", "net")
OLD_MAGIC = 0x1950A86A20F9469CFC6C  # of torch.save before version 1.6
NOT_WEIGHTS = "it is not a file of torch.save or safetensors"
MAX_STUBS = 10_000  # a class takes a thousand bytes of memory, and its name few in a file
MAX_INT = 2**63 - 1  # of a tensor's sizes
STORAGES = {  # their names in pickles
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
    "UntypedStorage": torch.uint8,
}
# What makes plain values: dates, paths, NumPy's scalars and arrays, random states, ...
VALUES = re.compile(
    r"_codecs\.encode|copyreg\._reconstructor|collections\.\w+|datetime\.\w+"
    r"|decimal\.Decimal|fractions\.Fraction|functools\.partial|numpy\.[\w.]+"
    r"|pathlib\.(_local\.)?\w*Path|random\.Random|types\.SimpleNamespace|uuid\.UUID"
    r"|torch\.(Size|device|_tensor\._rebuild\w+|_utils\._rebuild\w+|serialization\._get_layout)"
    r"|zoneinfo\.ZoneInfo(\._unpickle)?"
)


@dataclass
class Storage:
    """Bytes that tensors refer to, as a pickle describes them; nothing of that can be trusted."""

    key: Any
    dtype: Any
    numel: Any

    @property
    def nbytes(self) -> int:
        nbytes: int = self.numel * self.dtype.itemsize
        return nbytes


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

    It can be made, filled and given a state, and none of that does anything. Nor does a call; but
    a call of what makes no plain value refuses the file, for other readers would carry it out.
    """

    __hash__ = object.__hash__  # type: ignore[assignment]

    def __init__(self, *args: object, **kwargs: object) -> None:
        name = type(self).__name__
        module, _, last = name.rpartition(".")
        if module == "builtins":
            known = isinstance(vars(builtins).get(last), type)
        else:  # a library's class
            known = module.split(".")[0] not in sys.stdlib_module_names and last[:1].isupper()
        if not known and not VALUES.fullmatch(name):
            raise pickle.UnpicklingError(f"the file wants to call {name}")

    def __setstate__(self, state: object) -> None:
        pass

    def append(self, value: object) -> None:
        pass

    extend = add = append


def _typed(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> StoredTensor:
    dtype = storage.dtype if isinstance(storage, Storage) else None
    return StoredTensor(storage, dtype, offset, size, stride, plain=not any(more[2:]))


def _untyped(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> StoredTensor:
    return StoredTensor(storage, more[2], offset, size, stride, plain=not any(more[3:]))


def _meta(dtype: Any, size: Any, stride: Any, *more: Any) -> StoredTensor:
    return StoredTensor(None, dtype, 0, size, stride)


def _attribute(owner: type, name: str) -> type[PickleStub]:
    return type(f"{owner.__name__}.{name}", (PickleStub,), {})


REBUILD: dict[str, Callable[..., Any]] = {
    "builtins.getattr": _attribute,
    "torch._tensor._rebuild_from_type_v2": lambda rebuild, kind, args, state: rebuild(*args),
    "torch._utils._rebuild_meta_tensor_no_storage": _meta,
    "torch._utils._rebuild_parameter": lambda tensor, *more: tensor,
    "torch._utils._rebuild_parameter_with_state": lambda tensor, *more: tensor,
    "torch._utils._rebuild_tensor": _typed,
    "torch._utils._rebuild_tensor_v2": _typed,
    "torch._utils._rebuild_tensor_v3": _untyped,
}


class PickleReader(pickle._Unpickler):
    """Reads a pickle of torch.save; not in C, where one damaged index takes all memory there is.

    A bytearray's length takes memory before its bytes are there; torch.save writes none.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        code: step
        for code, step in pickle._Unpickler.dispatch.items()
        if code != pickle.BYTEARRAY8[0]
    }

    def __init__(self, file: BinaryIO | mmap.mmap) -> None:
        super().__init__(file)
        self.storages: dict[Any, Storage] = {}
        self.stubs: dict[str, type[PickleStub]] = {}

    def load(self) -> Any:
        try:
            return super().load()
        except pickle.UnpicklingError:  # a sentence
            raise
        except Exception as error:  # damage leads Python's machine astray
            raise ValueError("its pickle is damaged") from error

    def find_class(self, module: str, name: str) -> Any:
        renamed = (IMPORT_MAPPING.get(module, module), name)  # torch.save writes Python 2's names
        module, name = NAME_MAPPING.get((module, name), renamed)
        full = f"{module}.{name}"
        if full == "collections.OrderedDict":
            return OrderedDict
        if full in REBUILD:  # wrapped: a pickle may set attributes of what it is given
            return functools.partial(REBUILD[full])
        if module in ("torch", "torch.storage"):
            dtype = STORAGES.get(name) or vars(torch).get(name)
            if isinstance(dtype, torch.dtype):
                return dtype
        if full not in self.stubs:
            if len(self.stubs) == MAX_STUBS:
                raise pickle.UnpicklingError(f"the file names more than {MAX_STUBS} things")
            self.stubs[full] = type(full, (PickleStub,), {})
        return self.stubs[full]

    def persistent_load(self, pid: Any) -> Any:
        if pid[0] != "storage":
            return pid[1]  # an old file's module: its class
        _, dtype, key, _, numel = pid[:5]
        self.storages[key] = Storage(key, dtype, numel)
        return self.storages[key]


def read_pickle(path: Path, prefixes: tuple[str, ...]) -> dict[str, Tensor]:
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
                flat = torch.frombuffer(records[storage.key] or bytearray(16), dtype=value.dtype)
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
    lists = isinstance(size, (tuple, list)) and isinstance(stride, (tuple, list))
    numbers = (storage.numel, tensor.offset, *size, *stride) if lists else ()
    if (
        not lists
        or len(size) != len(stride)
        or not all(type(number) is int and 0 <= number <= MAX_INT for number in numbers)
    ):
        raise ValueError(f"{name} has no valid shape, strides and offset")
    end = tensor.offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True)) + 1
    if all(size) and end * tensor.dtype.itemsize > storage.nbytes:
        raise ValueError(f"{name} ends beyond its storage of {storage.nbytes:,} bytes")
    if math.prod(size) * tensor.dtype.itemsize > file_size:  # repeated by strides of zero
        raise ValueError(f"{name} is larger than the whole file")
    return storage


Content = tuple[Any, Callable[[Storage], bytes]]  # and how a storage's record is read


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
