"""Between a run and whoever watches it: refusals, signals to stop, progress."""

import _thread
import io
import math
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..data.images import BadImageError

BAR = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} {rate_fmt}, {remaining} left{postfix}"
LINE = "{n_fmt}/{total_fmt} {rate_fmt}, {remaining} left{postfix}"


class RefusedError(Exception):
    """The run cannot be done as asked; the message says what was seen and what is expected."""


class DivergedError(RefusedError):
    """The run's numbers are not finite any more; the message says where."""


class StoppedError(Exception):
    """The run was asked to stop and has left a checkpoint."""


def exit_status(run: Callable[[], None], again: str = "the same command with --resume") -> int:
    """Run a command; 0, or 2 where input or machine are at fault, or 130 where it was stopped.

    Images are read and files are written all along, so what those raise is one line, too.
    """
    _prepare_streams()
    usual, sys.unraisablehook = sys.unraisablehook, _stop_again
    try:
        try:
            run()
        finally:
            sys.stdout.flush()
            sys.unraisablehook = usual
    except (RefusedError, BadImageError, OSError) as error:
        said = _described(error) if isinstance(error, OSError) else str(error)
        return _ended(f"error: {said}", 2)
    except (MemoryError, RuntimeError) as error:
        if not _lacks_memory(error):
            raise
        said = " ".join(str(error).split())[:200]
        return _ended(f"error: out of memory, smaller crops or batches take less: {said}", 2)
    except (StoppedError, KeyboardInterrupt) as stop:
        then = f": {again} goes on from there" if again else ""
        return _ended(f"{str(stop) or 'stopped'}{then}", 130)
    return 0


def _stop_again(ignored: Any) -> None:
    """Where Ctrl-C came in a `__del__` or a callback, Python drops it: let it come once more."""
    if ignored.exc_type is KeyboardInterrupt:
        threading.Timer(0.1, _thread.interrupt_main).start()
    else:
        sys.__unraisablehook__(ignored)


def _prepare_streams() -> None:
    """Let every name be printed, whatever the encoding, also where a stream is closed."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115, PTH123
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _ended(line: str, status: int) -> int:
    """Say a last line, and drop what waits to be printed if it cannot be; Python would retry."""
    with suppress(OSError):
        print(line, file=sys.stderr, flush=True)
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _described(error: OSError) -> str:
    """The file and what is wrong with it."""
    if isinstance(error, BrokenPipeError):
        return "nobody reads what this command prints (closed pipe)"
    if error.strerror is None:  # whoever raised it has said it all
        return " ".join(str(error).split())
    return f"{error.filename or 'what this command writes or prints'}: {error.strerror}"


def _lacks_memory(error: Exception) -> bool:
    on_cpu = "DefaultCPUAllocator" in str(error)  # it raises no kind of its own
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or on_cpu


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what bad input raises into a RefusedError of one line."""
    try:
        yield
    except OSError as error:
        raise RefusedError(_described(error)) from error
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise RefusedError(" ".join(str(error).split())) from error


def check_folder(option: str, folder: Path, files: tuple[str, ...] = ()) -> None:
    """Refuse a folder that cannot be made, or that has folders in the place of these files."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{option}: {there} is a file; expected a folder or nothing")
    for path in (folder / name for name in files):
        if path.is_dir():
            raise ValueError(f"{option}: {path} is a folder; expected a file or nothing")


def claim(lock: Path) -> FileLock:
    """Keep other processes from writing beside this file, as long as this one lives.

    The system lets go of the lock when the process ends, however that is.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock, timeout=0, is_singleton=True)  # one process may have several runs there
    try:
        held.acquire()
    except Timeout as error:
        raise ValueError(
            f"{lock.parent}: another run is writing there; wait for its end, or choose another "
            "--output"
        ) from error
    except NotImplementedError:  # a file system without locks
        pass
    return held


@contextmanager
def stop_signals() -> Iterator[list[int]]:
    """Collect SIGINT and SIGTERM while inside; a second one has its usual effect."""
    seen: list[int] = []

    def remember(number: int, frame: FrameType | None) -> None:
        seen.append(number)
        signal.signal(number, usual[number])

    usual: dict[int, Any] = {
        number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield seen
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


class Progress(tqdm):
    """Speed, remaining time and losses: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, total: int, done: int, silent: bool) -> None:
        self.lines = not silent and not sys.stderr.isatty()
        super().__init__(
            total=total,
            initial=done,
            disable=silent,
            delay=math.inf if self.lines else 0,  # never shows itself in a log file
            bar_format=LINE if self.lines else BAR,
            dynamic_ncols=not self.lines,
            mininterval=0.5,
        )

    def show(self, text: str, *, milestone: bool) -> None:
        """Let the bar say something else; at a milestone a log file gets a line of it too."""
        self.set_postfix_str(text, refresh=False)
        if milestone and self.lines:
            with suppress(OSError):  # a run does not end because nobody reads on
                print(self, file=sys.stderr, flush=True)
