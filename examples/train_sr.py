"""Distil a small super-resolution student with DCKD, and see what it learned.

    python examples/train_sr.py                      # minutes on a laptop, nothing to download
    python examples/train_sr.py --method scratch     # the same without a teacher
    python examples/train_sr.py --data DIV2K --val Set5 --scale 4 \\
        --backbone swinir-student --teacher swinir-x4 --recipe paper

Without --data photographs of scikit-image are shrunk by MATLAB's bicubic; so are images without LR.
On several GPUs: accelerate launch, or torchrun --nproc_per_node N, examples/train_sr.py ...
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
from restoration.recomputation import recompute_blocks
from restoration.report import finish, start
from restoration.run import Run
from restoration.trainer import train

TEACHERS = {2: Path(__file__).parent / "assets" / "sr_x2_teacher.safetensors"}  # by scale


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""
    return exit_status(lambda: run(arguments()))


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = options.parser(__doc__, "sr")
    text = "HR size over LR size (default: 2)"
    parser.add_argument("--scale", type=int, metavar="N", default=2, help=text)
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Train, evaluate, and write the results."""
    with refusing():  # what a command line can have wrong shows here, the quick things first
        if args.scale < 2:
            raise ValueError(f"got --scale {args.scale}; expected 2 or more")
        folder = options.folder_of(args, f"sr_x{args.scale}")
        accelerator = options.accelerator_of(args)
        recipe = options.recipe_of(args, accelerator)
        teacher = open_teacher(args, TEACHERS.get(args.scale))
        set_seed(args.seed)
        student = backbones.build(args.backbone, args.scale)
        dckd = distillation(args, student, recipe)
        pairs, val_sets = load_data(args)
        crops = RandomCrops.of(recipe, pairs, scale=args.scale, seed=args.seed)
        workers = options.workers_of(args, pairs)
        folder.mkdir(parents=True, exist_ok=True)
    if args.gradient_checkpointing:
        recompute_blocks(student)
    job = Run(folder, recipe, crops, student, dckd=dckd, workers=workers)
    job.teacher = None if args.method == "scratch" else teacher
    job.validate = validation(next(iter(val_sets.values())), "sr", args.scale, accelerator)
    job.settings = settings(args, accelerator, job)
    start(args, job, teacher, accelerator)
    train(job, accelerator, resume=args.resume)
    finish(args, job, teacher, val_sets, accelerator)


def load_data(args: argparse.Namespace) -> tuple[Sequence[Pair], dict[str, Sequence[Pair]]]:
    """Training pairs, and validation pairs by the name of their set."""
    reading = {"skip_bad": args.skip_bad, "memory": args.memory}
    pairs: Sequence[Pair]
    if args.data is None:
        pairs = pairs_from_images(photographs("train"), args.scale)
    else:
        pairs = open_pairs(args.data, args.scale, **reading)
    if args.val:
        return pairs, open_sets(args.val, args.scale, **reading)
    return pairs, {"photographs": pairs_from_images(photographs("held_out"), args.scale)}


if __name__ == "__main__":
    sys.exit(main())
