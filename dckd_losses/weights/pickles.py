"""Read the pickles that torch.save writes, without executing anything of them.

Such a pickle describes tensors by their storages, whose bytes are elsewhere. Python's own machine
reads it, but a name in it gives no more than a dtype, an `OrderedDict`, one of `REBUILD` or a stub.
"""

from __future__ import annotations

import builtins
import functools
import mmap
import pickle
import re
import sys
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO, ClassVar

import torch

MAX_STUBS = 10_000  # a class takes a thousand bytes of memory, and its name few in a file
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
        return int(self.numel * self.dtype.itemsize)


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

    It can be made, filled, given a state and called, and none of that does anything. A call of what
    is not known to make a plain value refuses the file, as other readers would carry it out.
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


# more: requires_grad, hooks, of version 3 then the dtype, and metadata of odd tensors
def _typed(storage: Any, offset: Any, size: Any, stride: Any, *more: Any) -> StoredTensor:
    dtype = getattr(storage, "dtype", None)
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
            found = vars(torch).get(name)  # a dtype, or the class of storages that have one
            dtype = torch.uint8 if name == "UntypedStorage" else getattr(found, "_dtype", found)
            if isinstance(dtype, torch.dtype) and "torch.q" not in str(dtype):  # quantised
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
