"""The course of a training command, and what the three tasks' commands differ in."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from accelerate.utils import set_seed

from . import backbones, options
from .console import refusing
from .data import Pair, RandomCrops, open_pairs, open_sets, pairs_from_images, photographs
from .distillation import distillation, open_teacher, settings
from .evaluation import validation
from .pairs import Degradation
from .recomputation import recompute_blocks
from .report import finish, start
from .run import Run
from .trainer import train


@dataclass(frozen=True)
class Task:
    """One of the three.

    Attributes:
        name: "sr", "deblur" or "derain".
        teachers: files of the embedded ones, by scale.
        degradation: what makes LQ where there is none; None for MATLAB's bicubic by the scale.
        versions: of each of scikit-image's training photographs.
        held_out_versions: of each of those to look at.
        least_scale: of the outputs.
    """

    name: str
    teachers: Mapping[int, Path]
    degradation: Degradation | None = None
    versions: int = 1
    held_out_versions: int = 1
    least_scale: int = 1


def run(task: Task, args: argparse.Namespace) -> None:
    """Train, evaluate, and write the results."""
    scale = args.scale
    with refusing():  # what a command line can have wrong shows here, the quick things first
        if scale < task.least_scale:
            raise ValueError(f"got --scale {scale}; expected {task.least_scale} or more")
        folder = options.folder_of(args, task.name if scale == 1 else f"{task.name}_x{scale}")
        accelerator = options.accelerator_of(args)
        recipe = options.recipe_of(args, accelerator)
        teacher = open_teacher(args, task.teachers.get(scale))
        set_seed(args.seed)
        student = backbones.build(args.backbone, scale)
        dckd = distillation(args, student, recipe)
        pairs, val_sets = load_data(task, args)
        crops = RandomCrops.of(recipe, pairs, scale=scale, seed=args.seed)
        workers = options.workers_of(args, pairs)
        folder.mkdir(parents=True, exist_ok=True)
    if args.gradient_checkpointing:
        recompute_blocks(student)
    job = Run(folder, recipe, crops, student, dckd=dckd, workers=workers)
    job.teacher = None if args.method == "scratch" else teacher
    job.validate = validation(next(iter(val_sets.values())), task.name, scale, accelerator)
    job.settings = settings(args, accelerator, job)
    start(args, job, teacher, accelerator)
    train(job, accelerator, resume=args.resume)
    finish(args, job, teacher, val_sets, accelerator)


def load_data(
    task: Task, args: argparse.Namespace
) -> tuple[Sequence[Pair], dict[str, Sequence[Pair]]]:
    """Training pairs, and validation pairs by the name of their set."""
    scale, made = args.scale, task.degradation
    reading = {"skip_bad": args.skip_bad, "memory": args.memory, "degradation": made}
    pairs: Sequence[Pair]
    if args.data is None:
        pairs = pairs_from_images(photographs("train"), scale, made, versions=task.versions)
    else:
        pairs = open_pairs(args.data, scale, **reading)
    if args.val:
        return pairs, open_sets(args.val, scale, **reading)
    images, versions = photographs("held_out"), task.held_out_versions
    return pairs, {"photographs": pairs_from_images(images, scale, made, versions=versions)}
