"""Fetch named weights from the Hugging Face Hub, once for all who wait for them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath

from dckd_losses.weights.conversion import convert
from dckd_losses.weights.places import SOURCES, place


def fetch(name: str, *, delete_original: bool = False) -> Path:
    """The converted file of named weights, made on first use.

    The checkpoint goes through huggingface-hub: its cache, token, endpoint, proxy and offline
    settings hold, and its progress bar shows. One process fetches while the others wait for its
    lock beside the file: all ranks of a machine, and of all machines that share the folder.

    Args:
        name: of weights that are fetched, a key of `SOURCES`.
        delete_original: remove the complete checkpoint, about 1 GB, from the Hub's cache.

    Raises:
        RuntimeError: the weights cannot be fetched (says which file to put where), are not what
            they should be (nothing of them is kept), or the folder cannot be written.
    """
    path = place(name)
    if path.is_file() and not delete_original:
        return path
    with _alone(path):
        if not path.is_file():
            _fetch(name, path)
        if delete_original:
            _delete_original(name)
    return path


def recorded(name: str) -> str | None:
    """The sha256 that the first fetch recorded, of a checkpoint for which none is published."""
    record = _record(name)
    words = record.read_text(encoding="utf-8").split() if record.is_file() else []
    return words[0] if words else None


def _record(name: str) -> Path:
    return place(name).with_suffix(".sha256")


def _fetch(name: str, path: Path) -> None:
    source, known = SOURCES[name], recorded(name)
    checkpoint = _download(name, path)
    try:
        seen = convert(checkpoint, path, origin=source.url, expected=source.sha256 or known)
    except RuntimeError as error:  # of the checkpoint; an OSError is of the place it goes to
        hint = f" (recorded in {_record(name)}; remove that if you trust the new one)"
        raise RuntimeError(
            f"{error}{hint if known else ''}. It came as {source.file} ({source.size}) from "
            f"{source.repository}, and {_discard(checkpoint, source.file)}"
        ) from error
    if source.sha256 is None and known is None:
        _record(name).write_text(f"{seen}  {source.file}\n", encoding="utf-8")


def _download(name: str, path: Path) -> Path:
    from huggingface_hub import hf_hub_download  # here: nothing else in the package needs it

    source = SOURCES[name]
    try:
        return Path(hf_hub_download(source.repository, source.file, revision=source.revision))
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


def _delete_original(name: str) -> None:
    from huggingface_hub import try_to_load_from_cache

    source = SOURCES[name]
    cached = try_to_load_from_cache(source.repository, source.file, revision=source.revision)
    if isinstance(cached, str):
        _remove(Path(cached), source.file)


def _discard(checkpoint: Path, file: str) -> str:
    """Remove what cannot be used, or the Hub's cache would hand it out again; says how it went."""
    try:
        _remove(checkpoint, file)
    except OSError as error:
        return f"cannot be removed ({error}): remove {checkpoint} before you try again"
    return "has been removed: the next try fetches it anew"


def _remove(pointer: Path, file: str) -> None:
    """Remove a file from the Hub's cache: its blob, and every revision's link to that blob."""
    blob = pointer.parent / pointer.readlink() if pointer.is_symlink() else pointer
    snapshots = pointer.parents[len(PurePosixPath(file).parts)]
    target = pointer.resolve()
    for link in [link for link in snapshots.glob(f"*/{file}") if link.resolve() == target]:
        link.unlink()
    blob.unlink(missing_ok=True)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is about to be made, among threads, processes and machines."""
    from filelock import FileLock

    lock = path.with_name(f".{path.name}.lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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
