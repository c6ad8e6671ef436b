"""Read VQGAN encoder tensors from files, executing nothing that a file brings along."""

from __future__ import annotations

import ctypes
import hashlib
import os
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

PREFIXES = ("encoder.", "quant_conv.", "quantize.")
DIGEST = "tensors_sha256"  # metadata key under which `write_safetensors` leaves its own digest

# What omegaconf's nodes call, and paths among hyper-parameters: stood for like all other names
HARMLESS = ("collections.defaultdict", "pathlib.")


class _Inert(type):
    """The type of classes whose call makes nothing but an empty stand-in, or is refused."""

    def __call__(cls, *args: object, **kwargs: object) -> Any:
        if cls.__name__.startswith(HARMLESS):
            return super().__call__()
        raise pickle.UnpicklingError(f"the file wants to call {cls.__name__}")


class _NamedOnly(metaclass=_Inert):
    """Stands for whatever a pickle names: a Lightning callback, an omegaconf node, a function.

    Objects of it can be made and given a state, which runs nothing. A call, which a class's own
    constructor looks like too, refuses the file, the few of `HARMLESS` aside. Of dicts torch's
    reader fills its own kinds alone, so that one of those stands for every other, such as
    Lightning's `AttributeDict`; items for another kind of list refuse the file.
    """

    def __new__(cls, *args: object) -> Any:
        kind_of_dict = cls.__name__.lower().endswith("dict")
        return OrderedDict[object, object]() if kind_of_dict else super().__new__(cls)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, dtypes, shapes and bytes of the tensors, in the order of their names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():  # as a buffer, without NumPy, which torch does not require
            total.update((ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()))
    return total.hexdigest()


def read(path: Path) -> dict[str, Tensor]:
    """Read the encoder's tensors as float32.

    Args:
        path: a taming-transformers `.ckpt` (any pickle of torch is read with
            `weights_only=True`) or an encoder-only `.safetensors`.

    Returns:
        `encoder.*`, `quant_conv.*` and `quantize.*`; everything else in the file is left out.

    Raises:
        RuntimeError: the file is missing, cut short, altered or of another kind; names it.
    """
    if path.suffix == ".safetensors":
        tensors, _ = read_safetensors(path)
    else:
        with refusing(path):
            tensors = _read_pickle(path)
    # copied: a file that is still mapped could change under the tensors
    wanted = {
        k: v.to(torch.float32, copy=True) for k, v in tensors.items() if k.startswith(PREFIXES)
    }
    if not wanted:
        raise RuntimeError(f"{path}: holds no tensor named {', '.join(PREFIXES)}...")
    return wanted


def write_safetensors(tensors: Mapping[str, Tensor], path: Path, **metadata: str) -> None:
    """Write tensors with their digest, so that `read` notices alteration; never half a file.

    A file that is there already is replaced as a whole: who has it open or mapped keeps the old
    one.

    Raises:
        OSError: it cannot be written.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        partial.touch()
        mode = partial.stat().st_mode  # safetensors' own files are their owner's alone
        save_file(contiguous, partial, {**metadata, DIGEST: digest(contiguous)})
        partial.chmod(mode)
        partial.replace(path)
    except SafetensorError as error:  # its own name for a full disk
        raise OSError(f"{path} cannot be written: {error}") from error
    except PermissionError as error:
        raise PermissionError(
            f"{path} cannot be replaced ({error.strerror}); on Windows that also is so while an "
            "encoder that was loaded from it is alive"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors and metadata, and compare the digest where the file has one.

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


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes its reader say into one kind of error."""
    if not path.is_file():
        raise RuntimeError(f"{path}: no such file")
    try:
        yield
    except Exception as error:  # damaged files make their readers stumble over anything
        if isinstance(error, pickle.UnpicklingError) and error.__context__ is not None:
            told: BaseException = error.__context__  # before torch wrapped it in advice
        else:
            told = error
        size, said = path.stat().st_size, str(told).splitlines() or [type(told).__name__]
        raise RuntimeError(
            f"{path} ({size:,} bytes) is cut short, altered or not such weights: {said[0]}"
        ) from error


def _read_pickle(path: Path) -> dict[str, Tensor]:
    named: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = []
    zipped = zipfile.is_zipfile(path)
    if zipped:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken is not None:
            raise ValueError(f"its entry {broken} fails the checksum")
        for name in torch.serialization.get_unsafe_globals_in_checkpoint(path):
            named.append((_Inert(name, (_NamedOnly,), {}), name))
    with torch.serialization.safe_globals(named):
        # mapped where it can be: of a complete checkpoint the encoder is an eighth
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    state = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise ValueError("it holds no state_dict")
    return {k: v for k, v in state.items() if isinstance(k, str) and isinstance(v, Tensor)}
