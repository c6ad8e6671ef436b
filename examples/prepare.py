"""Cut the images of a data set into overlapping sub-images, which are much faster to read.

    python examples/prepare.py DIV2K            # writes DIV2K_train_HR_sub, .../X2_sub and so on
    python examples/prepare.py GoPro/train      # writes blur_crops and sharp_crops

The training commands take them where they find them. Sizes and steps are those of the networks'
authors: 480 and 240 pixels of HR for DIV2K, 512 and 256 for deblurring. A second call does what a
first has left undone.
"""

import argparse
import os
import signal
import sys
from concurrent.futures import ProcessPoolExecutor

import restoration  # noqa: F401  (before the slow ones)
from restoration.command import MAX_WORKERS, path
from restoration.data.layouts import UNFINISHED
from restoration.data.subimages import check, plan, write_crops
from restoration.training.console import exit_status, refusing
from tqdm import tqdm

from dckd_losses.checks import check_number


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""

    def command() -> None:
        with refusing():
            run(arguments())

    return exit_status(command, again="the same command")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", type=path, help="DIV2K's folder, or one with blur and sharp in it or below")
    text = "of super-resolution (default: 2 3 4)"
    add("--scales", type=int, nargs="+", choices=[2, 3, 4], default=[2, 3, 4], help=text)
    text = "processes (default: one a core)"
    add("--workers", type=int, metavar="N", default=os.cpu_count() or 1, help=text)
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Cut what is not there yet."""
    check_number("--workers", args.workers, at_least=1, at_most=MAX_WORKERS, whole=True)
    todo = plan(args.data, args.scales)
    check(todo)  # what fails later leaves the mark, and would fail the same way again
    mark, made = args.data / UNFINISHED, 0
    mark.touch()  # until it is gone, nobody trains on half a set
    with ProcessPoolExecutor(args.workers, initializer=leave_signals) as pool:
        results = pool.map(write_crops, todo, chunksize=4)
        try:
            for count in tqdm(results, total=len(todo), unit="image", dynamic_ncols=True):
                made += count
        except BaseException:  # without this, what is queued would be done first
            pool.shutdown(cancel_futures=True)
            raise
    mark.unlink()
    folders = sorted({str(cut.folder) for cut in todo})
    print(f"{made:,} sub-images written to {', '.join(folders)}")


def leave_signals() -> None:
    """Ctrl-C reaches every process; the first one speaks for all."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    sys.exit(main())
