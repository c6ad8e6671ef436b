"""Distil a small super-resolution student with DCKD, and see what it learned.

    python examples/train_sr.py                      # minutes on a laptop, nothing to download
    python examples/train_sr.py --method scratch     # the same without a teacher
    python examples/train_sr.py --data DIV2K --val Set5 --scale 4 --teacher teacher_x4.safetensors

On several GPUs: accelerate launch, or torchrun --nproc_per_node N, examples/train_sr.py ...
Ctrl-C stops after the current step; the same command with --resume goes on as if it had not.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from restoration import backbones, teachers
from restoration.checkpoints import checksum
from restoration.console import RefusedError, StoppedError, refusing
from restoration.data import Pair, RandomCrops, load_pairs, pairs_from_images, photographs
from restoration.evaluation import evaluate
from restoration.recipes import SMALL_SR, Recipe
from restoration.report import description, report
from restoration.trainer import Run, train
from torch import nn

from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator

TEACHERS = {2: Path(__file__).parent / "assets" / "sr_x2_teacher.safetensors"}  # by scale
TEACHER_BACKBONE = "small"  # what the embedded teachers are
METHODS = {  # DCKD's two terms, each on or off; None where DCKD has no part
    "scratch": None,
    "logits": None,
    "dcr": (True, False),
    "dmm": (False, True),
    "dckd": (True, True),
}
RECIPE_OPTIONS = {
    "iterations": "optimizer steps",
    "batch_size": "crops a step and process",
    "crop": "LR pixels a side",
}
OTHER_OPTIONS = ("data", "val", "encoder", "teacher", "output", "resume", "skip_bad")
FACTS = ("scale", "method", "iterations", "seed")  # options that metrics.json repeats
MIN_OUTPUT = 16  # pixels a side that the encoder needs


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""
    try:
        run(arguments())
    except RefusedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (StoppedError, KeyboardInterrupt) as stop:
        said = str(stop) or "stopped"
        print(f"{said}: the same command with --resume goes on from there", file=sys.stderr)
        return 130
    return 0


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--data", type=Path, metavar="DIR", help="training images (default: scikit-image's)")
    add("--val", type=Path, metavar="DIR", action="append", help="validation images; repeatable")
    add("--scale", type=int, metavar="N", default=2, help="HR size over LR size (default: 2)")
    add("--backbone", choices=backbones.NAMES, default="tiny", help="the student (default: tiny)")
    add("--method", choices=list(METHODS), default="dckd", help="which losses (default: dckd)")
    add("--encoder", metavar="NAME", default="compact", help="name or path (default: compact)")
    add("--teacher", metavar="T", help="file, URL or name, see README (default: embedded, x2)")
    add("--dcr-weight", type=float, metavar="W", help="of its loss (default: the library's)")
    add("--dmm-weight", type=float, metavar="W", help="of its loss (default: the library's)")
    for option, meaning in RECIPE_OPTIONS.items():
        default = getattr(SMALL_SR, option)
        text = f"{meaning} (default: {default})"
        add(f"--{option.replace('_', '-')}", type=int, metavar="N", default=default, help=text)
    add("--seed", type=int, metavar="N", default=0, help="of weights, crops and negatives")
    add("--output", type=Path, metavar="DIR", help="default: runs/sr_x{scale}_{method}_{seed}")
    add("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    add("--skip-bad", action="store_true", help="leave unreadable images out")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Train, evaluate, and write the results."""
    folder = args.output or Path("runs") / f"sr_x{args.scale}_{args.method}_{args.seed}"
    with refusing():  # what a command line can have wrong shows here, the quick things first
        check(args, folder)
        # without cpu=True, torchrun's processes on a machine without GPUs would not meet
        accelerator = Accelerator(cpu=not torch.accelerator.is_available())
        recipe = replace(SMALL_SR, **{name: getattr(args, name) for name in RECIPE_OPTIONS})
        recipe = replace(recipe, batch_size=recipe.batch_size * accelerator.num_processes)
        teacher = open_teacher(args)
        set_seed(args.seed)
        student = backbones.build(args.backbone, args.scale)
        dckd = distillation(args, student, recipe)
        pairs, val_sets = load_data(args)
        length = recipe.crops_before(recipe.iterations)
        crops = RandomCrops(
            pairs, crop=recipe.crop, scale=args.scale, length=length, seed=args.seed
        )
        folder.mkdir(parents=True, exist_ok=True)
    first_set = next(iter(val_sets.values()))
    job = Run(folder, recipe, crops, student)
    job.teacher = None if args.method == "scratch" else teacher
    job.dckd = dckd
    job.validate = lambda model: evaluate(model, first_set, args.scale)["psnr"]
    job.settings = settings(args, accelerator, job, dckd and dckd.encoder.network)
    if accelerator.is_main_process:
        processes = f"{accelerator.num_processes} x {accelerator.device.type}"
        print(description(args, job, teacher, processes), flush=True)
    train(job, accelerator, resume=args.resume)
    if accelerator.is_main_process:
        backbones.save(student, folder / "student.safetensors", task="sr", method=args.method)
        models = {"input": None, "student": student}
        if teacher is not None:
            models["teacher"] = teacher.to(accelerator.device)
        facts = {"task": "sr", **{name: getattr(args, name) for name in FACTS}}
        print(report(folder, facts, models, val_sets, job.records))
        print(f"written to {folder}: " + ", ".join(sorted(p.name for p in folder.iterdir())))
    accelerator.end_training()


def check(args: argparse.Namespace, folder: Path) -> None:
    """Refuse numbers out of range and a file in the output's place."""
    if args.scale < 2:
        raise ValueError(f"got --scale {args.scale}; expected 2 or more")
    output = args.crop * args.scale
    if 0 < output < MIN_OUTPUT:
        raise ValueError(
            f"got --crop {args.crop} at scale {args.scale}: outputs of {output}x{output} pixels; "
            f"expected {MIN_OUTPUT}x{MIN_OUTPUT} or more"
        )
    for name in ("dcr_weight", "dmm_weight"):
        weight = getattr(args, name)
        if weight is not None and not 0 <= weight < float("inf"):
            raise ValueError(f"got --{name.replace('_', '-')} {weight}; expected 0 or more")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder}: found a file; expected a folder or nothing")


def open_teacher(args: argparse.Namespace) -> nn.Module | None:
    """The teacher of a file or the embedded one; every method but scratch needs one."""
    source, scale, paper = args.teacher, args.scale, args.backbone in backbones.SPECIFICATIONS
    trains_teacher = args.method == "scratch" and args.backbone == TEACHER_BACKBONE
    if source is None and not (paper or trains_teacher):
        source = TEACHERS.get(scale)
    if source is None and args.method == "scratch":
        return None
    if paper:
        teacher = teachers.load_for(args.backbone, source, scale)
    elif source is None:
        raise ValueError(
            f"no teacher is embedded for scale {scale}: train one by --scale {scale} "
            f"--method scratch --backbone {TEACHER_BACKBONE} and pass it by --teacher"
        )
    else:
        teacher = backbones.load(source)
    if teacher.scale != scale:
        raise ValueError(f"{source}: a network for x{teacher.scale}; expected x{scale}")
    if not torch.isfinite(teacher(torch.rand(1, 3, 32, 32))).all():
        raise ValueError(f"{source}: this teacher's output is not finite; expected an image")
    return teacher


def distillation(args: argparse.Namespace, student: nn.Module, recipe: Recipe) -> DCKDLoss | None:
    """DCKD's losses with the terms that the method has."""
    terms = METHODS[args.method]
    if terms is None:
        return None
    weights = {"dcr_weight": args.dcr_weight, "dmm_weight": args.dmm_weight}
    chosen = {name: value for name, value in weights.items() if value is not None}
    chosen |= {name: 0.0 for name, on in zip(weights, terms, strict=True) if not on}
    history = HistoryModel(student, interval=recipe.history_interval)
    negatives = NegativeGenerator(history, seed=args.seed)
    return DCKDLoss(student, args.encoder, negatives=negatives, **chosen)


def load_data(args: argparse.Namespace) -> tuple[list[Pair], dict[str, list[Pair]]]:
    """Training pairs, and validation pairs by the name of their set."""
    scale, skip_bad, folders = args.scale, args.skip_bad, args.val or []
    if args.data is None:
        pairs = pairs_from_images(photographs("train"), scale)
    else:
        pairs = load_pairs(args.data, scale, skip_bad=skip_bad)
    if not folders:
        return pairs, {"photographs": pairs_from_images(photographs("held_out"), scale)}
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(f"got --val folders {', '.join(names)}; expected different names")
    sets = (load_pairs(folder, scale, skip_bad=skip_bad) for folder in folders)
    return pairs, dict(zip(names, sets, strict=True))


def settings(
    args: argparse.Namespace, accelerator: Accelerator, job: Run, encoder: nn.Module | None
) -> dict[str, Any]:
    """What determines the student's weights: options, and checksums of what was read."""
    options = {name: value for name, value in vars(args).items() if name not in OTHER_OPTIONS}
    images = [image for _, *both in job.crops.pairs for image in both]
    networks = {"teacher": job.teacher, "encoder": encoder}
    read = {name: net.state_dict().values() for name, net in networks.items() if net is not None}
    return {
        **options,
        **{name: checksum(arrays) for name, arrays in {"data": images, **read}.items()},
        "processes": accelerator.num_processes,
        "precision": accelerator.mixed_precision,
    }


if __name__ == "__main__":
    sys.exit(main())
