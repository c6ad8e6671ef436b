"""Distil a small deraining student with DCKD, and see what it learned.

    python examples/train_derain.py                  # minutes on a laptop, nothing to download
    python examples/train_derain.py --data Rain13K/train --val Rain13K/test \\
        --backbone restormer-student --teacher restormer-rain13k --recipe paper

Without --data rain falls on photographs of scikit-image, and on the images of a folder without
rainy ones.
On several GPUs: accelerate launch, or torchrun --nproc_per_node N, examples/train_derain.py ...
Ctrl-C stops after the current step; the same command with --resume goes on as if it had not.
"""

import sys
from pathlib import Path

from restoration import command
from restoration.command import Task, run
from restoration.data.synthetic import rain
from restoration.training.console import exit_status

TEACHER = Path(__file__).parent / "assets" / "derain_teacher.safetensors"
TASK = Task("derain", {1: TEACHER}, rain, versions=8, held_out_versions=2)


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""
    return exit_status(lambda: run(TASK, command.parser(__doc__, TASK.name).parse_args()))


if __name__ == "__main__":
    sys.exit(main())
