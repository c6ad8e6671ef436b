"""Weights that have a name: where they can be had, how they get here, and that they are right."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path, PurePosixPath

from torch import Tensor

from dckd_losses.network import Architecture, build
from dckd_losses.weights.files import (
    COMPACT,
    file_lock,
    file_sha256,
    load,
    refusing,
    write_safetensors,
)

ORIGINAL = "original_sha256"  # metadata key: of the checkpoint that a file was converted from

# taming-transformers, configs/imagenet_vqgan.yaml, which both published f16 networks share
F16 = Architecture(
    stem=128,
    channels=(128, 128, 256, 256, 512),
    blocks=2,
    attention=(False, False, False, False, True),
    z_channels=256,
    code_channels=256,
    codes=1024,
)


@dataclass(frozen=True)
class Source:
    """A complete taming-transformers checkpoint on the Hugging Face Hub."""

    repository: str
    file: str  # in that repository
    size: str  # for people
    sha256: str | None  # where it has been published; otherwise the first fetch records it
    architecture: Architecture  # of its encoder
    elsewhere: tuple[str, ...]  # other public places that are known to offer these weights
    revision: str = "main"  # the commit, where one is known to have them; otherwise the branch

    @property
    def url(self) -> str:
        """The file's public address."""
        return f"https://huggingface.co/{self.repository}/resolve/{self.revision}/{self.file}"


SOURCES = {
    "vqgan-f16-1024": Source(
        repository="llvictorll/Maskgit-pytorch",
        file="pretrained_maskgit/VQGAN/last.ckpt",
        size="958 MB",
        sha256=None,
        architecture=F16,
        elsewhere=(
            "https://heibox.uni-heidelberg.de/f/140747ba53464f49b476/?dl=1",
            "https://github.com/Eleiber/VQGAN-Mirrors/releases/download/0.0.1/"
            "vqgan_imagenet_f16_1024.ckpt",
        ),
    ),
    "vqgan-f16-16384": Source(
        repository="Somnai/pytti-vqgan-checkpoints",
        file="imagenet/imagenet.ckpt",
        size="980 MB",
        sha256="845a68805098cb666420d5db93df53f3a3b6dd443e6dd85c05759c5b998cd663",
        architecture=replace(F16, codes=16384),
        elsewhere=(
            "https://huggingface.co/pxlpshr/pytti-models/resolve/main/vqgan/imagenet.ckpt",
            "https://heibox.uni-heidelberg.de/f/867b05fc8c4841768640/?dl=1",
            "https://github.com/mehdidc/feed_forward_vqgan_clip/releases/download/0.1/"
            "vqgan_imagenet_f16_16384.ckpt",
        ),
        revision="debc22c8f285c7734980c464ff992d335dde6e9a",
    ),
}
NAMES = ("compact", *SOURCES)


def cache_dir() -> Path:
    """The folder of converted weights: the environment variable DCKD_HOME, or a cache folder."""
    folder = os.environ.get("DCKD_HOME") or "~/.cache/dckd-losses"
    try:
        return Path(folder).expanduser()
    except RuntimeError as error:
        raise RuntimeError(f"{folder}: {error} Set DCKD_HOME to another folder") from error


def local_path(name: str) -> Path:
    """The file that holds, or once fetched will hold, the weights of a name.

    Raises:
        ValueError: the name is none of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"unknown weights {name!r}: expected one of {', '.join(NAMES)}")
    return COMPACT if name == "compact" else cache_dir() / f"{name}.safetensors"


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


def check_architecture(name: str, seen: Architecture, path: Path) -> None:
    """Refuse a file whose network is not the one that its name promises; other names promise none.

    Raises:
        RuntimeError: says in what the network in the file differs.
    """
    if name not in SOURCES:
        return
    expected = SOURCES[name].architecture
    different = [
        f"{field.name} {getattr(seen, field.name)} where {name} has {getattr(expected, field.name)}"
        for field in fields(Architecture)
        if getattr(seen, field.name) != getattr(expected, field.name)
    ]
    if different:
        raise RuntimeError(f"{path} is not {name}: it has {', '.join(different)}")


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
    with refusing(checkpoint):
        size, seen = checkpoint.stat().st_size, file_sha256(checkpoint)
    if expected is None and target.stem in SOURCES:
        expected = SOURCES[target.stem].sha256
    if expected not in (None, seen):
        raise RuntimeError(f"{checkpoint} ({size:,} bytes): sha256 is {seen}, expected {expected}")
    tensors = load(checkpoint)
    check_architecture(target.stem, architecture_of(tensors, checkpoint), checkpoint)
    target.parent.mkdir(parents=True, exist_ok=True)
    facts = {"original": origin or checkpoint.name, "original_bytes": str(size), ORIGINAL: seen}
    write_safetensors(tensors, target, **facts)
    return seen


def fetch(name: str, *, delete_original: bool = False) -> Path:
    """The converted file of named weights, made on first use.

    The checkpoint goes through huggingface-hub: its cache, token, endpoint, proxy, time limits and
    offline settings hold, and its progress bar shows. One process fetches while the others wait
    for its lock beside the file: all ranks of a machine, and of all machines that share the folder.

    Args:
        name: of weights that are fetched, a key of `SOURCES`.
        delete_original: remove the complete checkpoint, about 1 GB, from the Hub's cache.

    Raises:
        RuntimeError: the weights cannot be fetched (says which file to put where), are not what
            they should be (nothing of them is kept), or the folder cannot be written.
    """
    path = local_path(name)
    if path.is_file() and not delete_original:
        return path
    with file_lock(path):
        if not path.is_file():
            _fetch(name, path)
        if delete_original and (cached := _cached(SOURCES[name])):
            _remove(cached, SOURCES[name].file)
    return path


def recorded(name: str) -> str | None:
    """The sha256 that the first fetch recorded, of a checkpoint for which none is published."""
    record = local_path(name).with_suffix(".sha256")
    words = record.read_text(encoding="utf-8").split() if record.is_file() else []
    return words[0] if words else None


def _fetch(name: str, path: Path) -> None:
    source, known, record = SOURCES[name], recorded(name), path.with_suffix(".sha256")
    checkpoint = _download(source, path)
    try:
        seen = convert(checkpoint, path, origin=source.url, expected=source.sha256 or known)
    except RuntimeError as error:  # of the checkpoint; an OSError is of the place it goes to
        hint = f" (recorded in {record}; remove that if you trust the new one)" if known else ""
        try:
            _remove(checkpoint, source.file)  # or the Hub's cache would hand it out again
            then = "has been removed: the next try fetches it anew"
        except OSError as refusal:
            then = f"cannot be removed ({refusal}): remove {checkpoint} before you try again"
        raise RuntimeError(
            f"{error}{hint}. It came as {source.file} ({source.size}) from {source.repository}, "
            f"and {then}"
        ) from error
    if source.sha256 is None and known is None:
        record.write_text(f"{seen}  {source.file}\n", encoding="utf-8")


def _cached(source: Source) -> Path | None:
    """The checkpoint in the Hub's cache."""
    # imported here, as below: nothing else in the package needs it
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(source.repository, source.file, revision=source.revision)
    return Path(found) if isinstance(found, str) else None


def _download(source: Source, path: Path) -> Path:
    from huggingface_hub import hf_hub_download, hf_hub_url

    where = (source.repository, source.file)
    try:
        if _cached(source) is None:
            _ask(hf_hub_url(*where, revision=source.revision))
        return Path(hf_hub_download(*where, revision=source.revision))
    except Exception as error:  # the Hub's, the system's, its HTTP library's, which has changed
        said = (str(error).strip().splitlines() or ["no reason given"])[0]
        raise RuntimeError(
            f"{path} is missing, and {source.file} ({source.size}) of {source.repository} cannot "
            f"be fetched ({type(error).__name__}: {said}). Fetch it on a machine with a network "
            f"from {' or '.join((source.url, *source.elsewhere))} and run "
            f"'python -m dckd_losses.weights convert CHECKPOINT {path}' here, or pass its path "
            f"in place of the name. DCKD_HOME names another folder that has {path.name}; "
            "'compact' needs no download"
        ) from error


def _ask(url: str) -> None:
    """Ask a server once, within the Hub's time limit, whether it answers at all.

    The download itself would ask a silent one for more than six minutes. All else that can be
    wrong is left to the download, which tries again where that helps.
    """
    from huggingface_hub import constants, get_hf_file_metadata

    try:
        get_hf_file_metadata(url, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except Exception as error:
        if "Timeout" in type(error).__name__:  # the class depends on the Hub's HTTP library
            raise


def _remove(cached: Path, file: str) -> None:
    """Remove a file from the Hub's cache: its blob, and every revision's link to that blob."""
    blob = cached.parent / cached.readlink() if cached.is_symlink() else cached
    snapshots, target = cached.parents[len(PurePosixPath(file).parts)], cached.resolve()
    for link in [link for link in snapshots.glob(f"*/{file}") if link.resolve() == target]:
        link.unlink()
    blob.unlink(missing_ok=True)
