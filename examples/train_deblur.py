"""Distil a small deblurring student with DCKD, and see what it learned.

    python examples/train_deblur.py                  # minutes on a laptop, nothing to download
    python examples/train_deblur.py --data GoPro/train --val GoPro/test \\
        --backbone nafnet-student --teacher nafnet-gopro --recipe paper

Without --data photographs of scikit-image are blurred as by a moving camera; so are the images of a
folder without blurred ones.
On several GPUs: accelerate launch, or torchrun --nproc_per_node N, examples/train_deblur.py ...
Ctrl-C stops after the current step; the same command with --resume goes on as if it had not.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from accelerate.utils import set_seed
from restoration import backbones, options
from restoration.console import exit_status, refusing
from restoration.data import (
    Pair,
    RandomCrops,
    open_pairs,
    open_sets,
    pairs_from_images,
    photographs,
)
from restoration.distillation import distillation, open_teacher, settings
from restoration.evaluation import validation
from restoration.motion import camera_motion
from restoration.recomputation import recompute_blocks
from restoration.report import finish, start
from restoration.run import Run
from restoration.trainer import train

TEACHER = Path(__file__).parent / "assets" / "deblur_teacher.safetensors"
VERSIONS = 8  # of each training photograph, blurred along different paths
HELD_OUT_VERSIONS = 2


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""
    return exit_status(lambda: run(options.parser(__doc__, "deblur").parse_args()))


def run(args: argparse.Namespace) -> None:
    """Train, evaluate, and write the results."""
    with refusing():  # what a command line can have wrong shows here, the quick things first
        folder = options.folder_of(args, "deblur")
        accelerator = options.accelerator_of(args)
        recipe = options.recipe_of(args, accelerator)
        teacher = open_teacher(args, TEACHER)
        set_seed(args.seed)
        student = backbones.build(args.backbone, 1)
        dckd = distillation(args, student, recipe)
        pairs, val_sets = load_data(args)
        crops = RandomCrops.of(recipe, pairs, scale=1, seed=args.seed)
        workers = options.workers_of(args, pairs)
        folder.mkdir(parents=True, exist_ok=True)
    if args.gradient_checkpointing:
        recompute_blocks(student)
    job = Run(folder, recipe, crops, student, dckd=dckd, workers=workers)
    job.teacher = None if args.method == "scratch" else teacher
    job.validate = validation(next(iter(val_sets.values())), "deblur", 1, accelerator)
    job.settings = settings(args, accelerator, job)
    start(args, job, teacher, accelerator)
    train(job, accelerator, resume=args.resume)
    finish(args, job, teacher, val_sets, accelerator)


def load_data(args: argparse.Namespace) -> tuple[Sequence[Pair], dict[str, Sequence[Pair]]]:
    """Training pairs, and validation pairs by the name of their set."""
    reading = {"skip_bad": args.skip_bad, "memory": args.memory, "degradation": camera_motion}
    pairs: Sequence[Pair]
    if args.data is None:
        pairs = pairs_from_images(photographs("train"), 1, camera_motion, versions=VERSIONS)
    else:
        pairs = open_pairs(args.data, 1, **reading)
    if args.val:
        return pairs, open_sets(args.val, 1, **reading)
    held_out = photographs("held_out")
    return pairs, {
        "photographs": pairs_from_images(held_out, 1, camera_motion, versions=HELD_OUT_VERSIONS)
    }


if __name__ == "__main__":
    sys.exit(main())
