"""Distil a small super-resolution student with DCKD, and see what it learned.

    python examples/train_sr.py                      # minutes on a laptop, nothing to download
    python examples/train_sr.py --method scratch     # the same without a teacher
    python examples/train_sr.py --data DIV2K --val Set5 --scale 4 \\
        --backbone swinir-student --teacher swinir-x4 --recipe paper

The loop, in which DCKD's two lines are marked, is restoration/trainer.py.
Without --data photographs of scikit-image are shrunk by MATLAB's bicubic; so are images without LR.
On several GPUs: accelerate launch, or torchrun --nproc_per_node N, examples/train_sr.py ...
Ctrl-C stops after the current step; the same command with --resume goes on as if it had not.
"""

import argparse
import sys
from pathlib import Path

from restoration import command
from restoration.command import Task, run
from restoration.training.console import exit_status

ASSETS = Path(__file__).parent / "assets"
TASK = Task("sr", {2: ASSETS / "sr_x2_teacher.safetensors"}, least_scale=2)


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""
    return exit_status(lambda: run(TASK, arguments()))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = command.parser(__doc__, TASK.name)
    text = "HR size over LR size (default: 2)"
    parser.add_argument("--scale", type=int, metavar="N", default=2, help=text)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
