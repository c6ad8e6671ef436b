"""From a complete checkpoint to the encoder alone."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from dckd_losses.architecture import Architecture
from dckd_losses.checkpoint import read, refusing, write_safetensors
from dckd_losses.network import build
from dckd_losses.weights.places import SOURCES, check_promise

ORIGINAL = "original_sha256"  # metadata key: of the checkpoint that a file was converted from


def convert(
    checkpoint: Path, target: Path, *, origin: str | None = None, expected: str | None = None
) -> str:
    """Keep the encoder of a taming-transformers checkpoint as float32 safetensors.

    Nothing in the checkpoint is executed, and neither Lightning nor omegaconf is needed. The new
    file appears whole or not at all, and its metadata says what it was made from.

    Args:
        checkpoint: a complete or encoder-only checkpoint, or safetensors.
        target: where to write, a `.safetensors` file. Where it bears a name of `SOURCES`, the
            network has to be the one of that name, and the checkpoint the published one.
        origin: where the checkpoint came from; its file name by default.
        expected: the sha256 that the checkpoint has to have, checked before it is read; that of
            the target's name by default, where one is published.

    Returns:
        The checkpoint's sha256.

    Raises:
        ValueError: the target is no `.safetensors` file.
        RuntimeError: the checkpoint is missing, cut short, altered, has no complete encoder or
            another one than the target's name promises; names the file.
        OSError: the target cannot be written.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"the converted file must be named *.safetensors, got {target}")
    if not checkpoint.is_file():
        raise RuntimeError(f"{checkpoint}: no such file")
    size, seen = checkpoint.stat().st_size, sha256(checkpoint)
    if expected is None and target.stem in SOURCES:
        expected = SOURCES[target.stem].sha256
    if expected not in (None, seen):
        raise RuntimeError(f"{checkpoint} ({size:,} bytes): sha256 is {seen}, expected {expected}")
    tensors = read(checkpoint)
    check_promise(target.stem, architecture_of(tensors, checkpoint), checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = {"original": origin or checkpoint.name, "original_bytes": str(size), ORIGINAL: seen}
    write_safetensors(tensors, target, **facts)
    return seen


def architecture_of(tensors: Mapping[str, Tensor], path: Path) -> Architecture:
    """The architecture of tensors that are one complete encoder, each with its exact shape.

    Raises:
        RuntimeError: they are not; names the file, and each tensor that is missing, left over or of
            another shape.
    """
    try:
        return build(tensors).architecture
    except (ValueError, KeyError) as error:
        raise RuntimeError(f"{path}: {error}") from error


def architecture_in(path: Path) -> Architecture:
    """The architecture of the encoder in a safetensors file, of which only the header is read.

    Raises:
        RuntimeError: the file is missing, cut short, altered or no such encoder; names it.
    """
    with refusing(path), safe_open(path, framework="pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    return architecture_of({k: torch.empty(v, device="meta") for k, v in shapes.items()}, path)


def sha256(path: Path) -> str:
    """sha256 of a file's bytes, in hexadecimal."""
    total = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()
