"""Distil a small deblurring student with DCKD, and see what it learned.

    python examples/train_deblur.py                  # minutes on a laptop, nothing to download
    python examples/train_deblur.py --data GoPro/train --val GoPro/test \\
        --backbone nafnet-student --teacher nafnet-gopro --recipe paper

Without --data photographs of scikit-image are blurred as by a moving camera; so are the images of a
folder without blurred ones.
On several GPUs: accelerate launch, or torchrun --nproc_per_node N, examples/train_deblur.py ...
Ctrl-C stops after the current step; the same command with --resume goes on as if it had not.
"""

import sys
from pathlib import Path

from restoration import command
from restoration.command import Task, run
from restoration.data.synthetic import camera_motion
from restoration.training.console import exit_status

TEACHER = Path(__file__).parent / "assets" / "deblur_teacher.safetensors"
TASK = Task("deblur", {1: TEACHER}, camera_motion, versions=8, held_out_versions=2)


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""
    return exit_status(lambda: run(TASK, command.parser(__doc__, TASK.name).parse_args()))


if __name__ == "__main__":
    sys.exit(main())
