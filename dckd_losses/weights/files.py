"""Read and write files of weights; nothing that a file brings along is executed."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from dckd_losses.weights.saved import read_saved

COMPACT = Path(__file__).parents[1] / "assets" / "compact.safetensors"
DIGEST = "tensors_sha256"  # metadata key under which `write_safetensors` leaves its own digest
# An encoder's tensors. What else a quantiser keeps (averages of an EMA codebook, `remap`'s table)
# is not needed; `embed` and `proj` tell a Gumbel quantiser, which is refused.
PREFIXES = (
    "encoder.",
    "quant_conv.",
    "quantize.embedding.weight",
    "quantize.embed.",
    "quantize.proj.",
)
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# What readers raise where damage leads them astray; their words tell a user nothing
STUMBLES = (AttributeError, LookupError, MemoryError, OverflowError, TypeError, UnicodeError)
SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def load(path: Path) -> dict[str, Tensor]:
    """Read an encoder's tensors as float32, for networks that never write to them.

    Of float32 files that `write_safetensors` made, the tensors show the file, which is mapped into
    memory; such files are only ever replaced as a whole, so that the map keeps the old one. Others
    are copied.

    Args:
        path: a taming-transformers `.ckpt`, any other file of `torch.save`, or `.safetensors`.

    Returns:
        `encoder.*`, `quant_conv.*` and `quantize.embedding.weight`; what else the file holds is
        left out.

    Raises:
        RuntimeError: the file is missing, cut short, altered or of another kind, or a tensor is
            empty, has no values or some that are not finite; names the file and the tensor.
    """
    return load_with_metadata(path)[0]


def load_with_metadata(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """As `load`, with what a safetensors file says of itself."""
    metadata: dict[str, str] = {}
    if path.suffix == ".safetensors":
        stored, metadata = read_safetensors(path)
        copy = DIGEST not in metadata  # nobody says that such a file is only replaced as a whole
        if copy and path == COMPACT:
            raise RuntimeError(f"{path} is altered: the embedded encoder has a digest")
    else:
        stored, copy = read_checkpoint(path, PREFIXES), False
    tensors: dict[str, Tensor] = {}
    size, total = path.stat().st_size, 0
    for name, tensor in stored.items():
        if not name.startswith(PREFIXES):
            continue
        total += tensor.numel() * tensor.itemsize
        if tensor.numel() == 0:
            raise RuntimeError(f"{path}: {name} is empty, of shape {tuple(tensor.shape)}")
        if tensor.dtype not in FLOATS:
            raise RuntimeError(
                f"{path}: {name} is {tensor.dtype}; floating point of 16, 32 or 64 bits is expected"
            )
        if total > size:  # repeated by strides of zero, or by tensors that share one storage
            raise RuntimeError(f"{path}: {name} and those before it are larger than the file")
        tensors[name] = tensor.to(torch.float32, copy=copy).contiguous()
        # a sum is not finite where one value is not, and takes a third of the time
        if not tensors[name].sum(dtype=torch.float64).isfinite():
            raise RuntimeError(f"{path}: {name} has values that are not finite")
    if not tensors:
        names = " or ".join(PREFIXES[:3])
        raise RuntimeError(f"{path}: holds no tensor whose name begins with {names}")
    return tensors, metadata


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
        ValueError: a tensor's dtype is none of `SAFETENSORS_DTYPES`; names the tensor.
        OSError: it cannot be written.
    """
    dense = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
    header: dict[str, Any] = {"__metadata__": {**metadata, DIGEST: digest(dense)}}
    names, end = sorted(dense, key=lambda name: (-dense[name].itemsize, name)), 0  # aligned
    for name in names:
        tensor, start = dense[name], end
        if tensor.dtype not in SAFETENSORS_DTYPES:
            raise ValueError(f"{name} is {tensor.dtype}, which has no name in safetensors")
        end += tensor.nbytes
        dtype, shape = SAFETENSORS_DTYPES[tensor.dtype], list(tensor.shape)
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
    except OSError as error:
        in_use = "; on Windows also while an encoder that was loaded from it is alive"
        hint = in_use if isinstance(error, PermissionError) else ""
        raise type(error)(f"{path} cannot be written ({error.strerror}{hint})") from error
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
            has more than one set of weights, the first of `saved.STATES` is taken.
        prefixes: only tensors whose names begin with one of these are read.

    Returns:
        The tensors of the state dict, in their own dtypes.

    Raises:
        RuntimeError: the file is missing, cut short, altered, of another kind (TorchScript and
            other archives with code among them), or its pickle wants to call something; names it.
    """
    if path.suffix == ".safetensors":
        return {k: v for k, v in read_safetensors(path)[0].items() if k.startswith(prefixes)}
    with refusing(path):
        return read_saved(path, prefixes)


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file makes its reader say into one kind of error."""
    if not path.is_file():
        seen = "a folder" if path.is_dir() else "no regular file"
        raise RuntimeError(f"{path}: {f'is {seen}' if path.exists() else 'no such file'}")
    try:
        yield
    except Exception as error:  # damaged files make their readers stumble over anything
        said = (str(error).splitlines() or [""])[0]
        if " " not in said or isinstance(error, STUMBLES):
            said = "its content cannot be read"
        raise RuntimeError(
            f"{path} ({path.stat().st_size:,} bytes) is cut short, altered or not such weights: "
            f"{said}"
        ) from error


@contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is about to be made, among threads, processes and machines."""
    from filelock import FileLock

    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # or filelock would try for ever where no file can be made, as in /proc
        with FileLock(lock):
            try:
                yield
            finally:
                # Unlinked while held: who waits for it looks at `path` next, so the worst is that
                # after a failure two try again side by side. Windows: filelock removes it itself.
                with suppress(OSError):
                    lock.unlink()
    except OSError as error:
        raise RuntimeError(
            f"{path} cannot be made ({error}); set DCKD_HOME to a folder that can be written"
        ) from error


def _bytes(tensor: Tensor) -> Any:
    """A dense tensor's memory as a buffer, without NumPy, which torch does not require."""
    return (ctypes.c_char * tensor.nbytes).from_address(tensor.data_ptr()) if tensor.nbytes else b""
