"""Between a run and whoever watches it: refusals, signals to stop, progress."""

import math
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

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
    """Run a command; 0, or 2 where the input is at fault, or 130 where it was stopped."""
    try:
        run()
    except (RefusedError, BadImageError) as error:  # images are read all along
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (StoppedError, KeyboardInterrupt) as stop:
        said = str(stop) or "stopped"
        print(f"{said}: {again} goes on from there", file=sys.stderr)
        return 130
    return 0


@contextmanager
def refusing() -> Iterator[None]:
    """Turn what bad input raises into a RefusedError of one line."""
    try:
        yield
    except (ValueError, RuntimeError, OSError) as error:
        raise RefusedError(" ".join(str(error).split())) from error


def check_folder(option: str, folder: Path) -> None:
    """Refuse a folder that cannot be made, because it or one above it is a file."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f"{option}: {there} is a file; expected a folder or nothing")


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


class Progress:
    """Speed, remaining time and losses: a bar on a terminal, now and then a line elsewhere."""

    def __init__(self, total: int, done: int, silent: bool) -> None:
        self.lines = not silent and not sys.stderr.isatty()
        self._bar = tqdm(
            total=total,
            initial=done,
            disable=silent,
            delay=math.inf if self.lines else 0,  # never shows itself in a log file
            bar_format=LINE if self.lines else BAR,
            dynamic_ncols=not self.lines,
            mininterval=0.5,
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *raised: object) -> None:
        self._bar.close()

    def step(self) -> None:
        """Count a step."""
        self._bar.update()

    def show(self, text: str, *, milestone: bool) -> None:
        """Let the bar say something else; at a milestone a log file gets a line of it too."""
        self._bar.set_postfix_str(text, refresh=False)
        if milestone and self.lines:
            print(self._bar, file=sys.stderr, flush=True)
