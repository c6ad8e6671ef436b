"""The training commands of the three tasks: their options, and their course from start to end."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn

from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator
from dckd_losses.balance import check_fraction
from dckd_losses.dmm import FORMS

from . import networks
from .data.crops import RandomCrops, check_shares
from .data.datasets import (
    MEMORY,
    Degradation,
    Pair,
    PairFiles,
    open_pairs,
    open_sets,
    pairs_from_images,
)
from .data.images import photographs
from .networks import KNOWN, teacher_of
from .recipe import PAPER, SMALL, Recipe
from .results.evaluation import validation
from .results.report import finish, start
from .training.checkpoint import checksum
from .training.console import refusing
from .training.gradient_checkpointing import recompute_blocks
from .training.loop import Run, train

METHODS = {  # DCKD's two terms, each on or off; None where DCKD has no part
    "scratch": None,
    "logits": None,
    "dcr": (True, False),
    "dmm": (False, True),
    "dckd": (True, True),
}
SIZES = {
    "iterations": "optimizer steps; the recipe's switches move along",
    "batch_size": "crops a step and process, all along",
    "crop": "LQ pixels a side, all along",
}
WEIGHTS = ("dcr_weight", "dmm_weight")
FILE_WORKERS = 4  # processes, and no more than there are cores
MIN_OUTPUT = 16  # pixels a side that the encoder needs


def parser(description: str | None, task: str) -> argparse.ArgumentParser:
    """A parser with the common options, for one of "sr", "deblur" and "derain"."""
    made = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(task=task, scale=1)
    add = made.add_argument
    add("--data", type=Path, metavar="DIR", help="training images (default: scikit-image's)")
    add("--val", type=Path, metavar="DIR", action="append", help="validation images; repeatable")
    add("--backbone", choices=networks.NAMES, default="tiny", help="the student (default: tiny)")
    add("--method", choices=list(METHODS), default="dckd", help="which losses (default: dckd)")
    add("--encoder", metavar="NAME", default="compact", help="name or path (default: compact)")
    add("--teacher", metavar="T", help="file, URL or name, see README (default: the embedded one)")
    add("--seed", type=int, metavar="N", default=0, help="of weights, crops and negatives")
    add("--output", type=Path, metavar="DIR", help="default: a folder in runs/ named by the run")
    add("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    add("--skip-bad", action="store_true", help="leave unreadable images out")
    _add_recipe(made)
    _add_scale(made)
    return made


def _add_recipe(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("recipe", "numbers default to the recipe's").add_argument
    text = "the backbone's from the paper, or one of minutes (default: small)"
    add("--recipe", choices=["small", "paper"], default="small", help=text)
    for name, meaning in SIZES.items():
        add(_option(name), type=int, metavar="N", help=meaning)
    for name in WEIGHTS:
        add(_option(name), type=float, metavar="W", help="of its loss; fixed without --balance")
    add("--form", choices=list(FORMS), help="of DMM: Eq. 9's, or the released code's")
    text = "DCKD's gradient as a fraction of an L1's, which the weights share; 0 for fixed weights"
    add("--balance", type=float, metavar="F", help=text)


def _add_scale(made: argparse.ArgumentParser) -> None:
    add = made.add_argument_group("scale", "see README for several GPUs").add_argument
    text = "of student and teacher (default: what accelerate launch says)"
    add("--mixed-precision", choices=["no", "fp16", "bf16"], help=text)
    text = "go through each step's crops in N parts (default: 1)"
    add("--gradient-accumulation", type=int, metavar="N", default=1, help=text)
    text = "compute the student's features again in backward instead of keeping them"
    add("--gradient-checkpointing", action="store_true", help=text)
    text = f"gigabytes of pixels up to which a data set is kept in memory (default: {MEMORY:g})"
    add("--memory", type=float, metavar="GB", default=MEMORY, help=text)
    text = "processes that read images ahead (default: 4 where a data set is too large for memory)"
    add("--workers", type=int, metavar="N", help=text)


def accelerator_of(args: argparse.Namespace) -> Accelerator:
    """The devices that the command line and its launcher ask for."""
    if args.gradient_accumulation < 1:
        raise ValueError(
            f"got --gradient-accumulation {args.gradient_accumulation}; expected 1 or more"
        )
    return Accelerator(
        # without it, torchrun's processes on a machine without GPUs would not meet
        cpu=not torch.accelerator.is_available(),
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation,
    )


def recipe_of(args: argparse.Namespace, accelerator: Accelerator) -> Recipe:
    """The recipe with what the command line changes in it.

    Raises:
        ValueError: the paper has none for this backbone, a number is out of range or of a loss
            that the method does not have, or the processes cannot share a step's crops equally.
    """
    recipe = SMALL.get(args.backbone, SMALL[args.task])
    if args.recipe == "paper":
        if args.backbone not in PAPER:
            known = ", ".join(PAPER)
            raise ValueError(f"got --recipe paper for {args.backbone}; expected one of {known}")
        recipe = PAPER[args.backbone]
    if args.iterations is not None:
        recipe = recipe.shortened(args.iterations)
    if args.batch_size is not None:
        total = args.batch_size * accelerator.num_processes
        recipe = replace(recipe, batch_size=total).with_constant("batch_size")
    if args.crop is not None:
        recipe = replace(recipe, crop=args.crop).with_constant("crop")
    recipe = _weighted(recipe, args)
    check_shares(recipe, accelerator.num_processes, accelerator.gradient_accumulation_steps)
    _check_outputs(recipe, args.scale)
    return recipe


def _weighted(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe with the command line's weights, which are fixed unless it balances them too."""
    _refuse_idle(args)
    for name in WEIGHTS:
        weight = getattr(args, name)
        if weight is not None:
            if not 0 <= weight < float("inf"):
                raise ValueError(f"got {_option(name)} {weight}; expected 0 or more")
            recipe = replace(recipe, balance=None, **{name: weight})
    if args.form is not None:
        recipe = replace(recipe, form=args.form)
    if args.balance is not None:
        recipe = replace(recipe, balance=check_fraction(args.balance or None))
    return recipe


def _refuse_idle(args: argparse.Namespace) -> None:
    """Refuse weights of losses that the method does not have."""
    needed = {"dcr_weight": (0,), "dmm_weight": (1,), "form": (1,), "balance": (0, 1)}
    for name, terms in needed.items():
        having = [m for m, has in METHODS.items() if has and any(has[term] for term in terms)]
        value = getattr(args, name)
        if value is not None and args.method not in having:
            raise ValueError(
                f"got {_option(name)} {value} for --method {args.method}; expected --method "
                f"{' or '.join(having)}"
            )


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _check_outputs(recipe: Recipe, scale: int) -> None:
    """Require crops that the encoder can take."""
    for stage in recipe.all_stages:
        output = stage.crop * scale
        if output < MIN_OUTPUT:
            raise ValueError(
                f"got --crop {stage.crop} at scale {scale}: outputs of {output}x{output} pixels; "
                f"expected {MIN_OUTPUT}x{MIN_OUTPUT} or more"
            )


def folder_of(args: argparse.Namespace, name: str) -> Path:
    """The output folder, in which a file is refused."""
    folder: Path = args.output or Path("runs") / f"{name}_{args.method}_{args.seed}"
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"--output {folder}: found a file; expected a folder or nothing")
    return folder


def workers_of(args: argparse.Namespace, pairs: Sequence[Pair]) -> int:
    """Processes that read ahead; pairs in memory are there sooner than a process can hand on."""
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"got --workers {args.workers}; expected 0 or more")
    ahead = min(FILE_WORKERS, os.cpu_count() or 1)
    default = ahead if isinstance(pairs, PairFiles) else 0
    return default if args.workers is None else int(args.workers)


TEACHER_BACKBONE = "small"  # what the embedded teachers are
DECISIVE = ("task", "scale", "backbone", "method", "seed")  # besides the recipe and what is read


def open_teacher(args: argparse.Namespace, embedded: Path | None) -> nn.Module | None:
    """The teacher of the command line or the embedded one; every method but scratch needs one."""
    source, scale, paper = args.teacher, args.scale, args.backbone in networks.SPECIFICATIONS
    trains_teacher = args.method == "scratch" and args.backbone == TEACHER_BACKBONE
    if source is None and not (paper or trains_teacher):
        source = embedded
    if source is None and args.method == "scratch":
        return None
    if paper:
        teacher = networks.load_teacher(args.backbone, source, scale)
    elif source is None:
        raise ValueError(
            f"no teacher is embedded for scale {scale}: train one by --scale {scale} "
            f"--method scratch --backbone {TEACHER_BACKBONE} and pass it by --teacher"
        )
    else:
        _refuse_known(str(source), args.backbone)
        teacher = networks.load(source)
    if teacher.scale != scale:
        raise ValueError(f"{source}: a network for x{teacher.scale}; expected x{scale}")
    if not torch.isfinite(teacher(torch.rand(1, 3, 32, 32))).all():
        raise ValueError(f"{source}: this teacher's output is not finite; expected an image")
    return teacher


def _refuse_known(source: str, backbone: str) -> None:
    """Require a file of a small network's teacher: names and URLs are of the paper's networks."""
    known = KNOWN.get(source)
    if known is None and "://" not in source:
        return
    students = [
        name
        for name in networks.SPECIFICATIONS
        if name != teacher_of(name) and (known is None or teacher_of(name) == known.backbone)
    ]
    raise ValueError(
        f"got --teacher {source} for {backbone}; expected a file, or --backbone "
        f"{' or '.join(students)}: names and URLs are of the paper's networks"
    )


def distillation(args: argparse.Namespace, student: nn.Module, recipe: Recipe) -> DCKDLoss | None:
    """DCKD's losses with the terms that the method has."""
    terms = METHODS[args.method]
    if terms is None:
        return None
    weights = {
        name: getattr(recipe, name) if on else 0.0 for name, on in zip(WEIGHTS, terms, strict=True)
    }
    history = HistoryModel(student, interval=recipe.history_interval)
    negatives = NegativeGenerator(history, seed=args.seed)
    settings = {"form": recipe.form, "balance": recipe.balance}
    return DCKDLoss(student, args.encoder, negatives=negatives, **settings, **weights)


def settings(args: argparse.Namespace, accelerator: Accelerator, job: Run) -> dict[str, Any]:
    """What determines the student's weights: options, the recipe, checksums of what was read."""
    networks = {"teacher": job.teacher, "encoder": job.dckd and job.dckd.encoder.network}
    read = {name: net.state_dict().values() for name, net in networks.items() if net is not None}
    return {
        **{name: getattr(args, name) for name in DECISIVE},
        **asdict(job.recipe),
        "data": fingerprint(job.crops.pairs),
        **{name: checksum(arrays) for name, arrays in read.items()},
        "processes": accelerator.num_processes,
        "parts": accelerator.gradient_accumulation_steps,
        "precision": accelerator.mixed_precision,
    }


def fingerprint(pairs: Sequence[Pair]) -> str:
    """A checksum of pixels, or, where those are too many to be read, of names and file sizes."""
    if not isinstance(pairs, PairFiles):
        return checksum(image for _, *both in pairs for image in both)
    facts = [(f.name, *(p.stat().st_size for p in (f.hq, f.lq) if p)) for f in pairs.files]
    return checksum([bytearray(repr(facts).encode())])


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
        folder = folder_of(args, task.name if scale == 1 else f"{task.name}_x{scale}")
        accelerator = accelerator_of(args)
        recipe = recipe_of(args, accelerator)
        teacher = open_teacher(args, task.teachers.get(scale))
        set_seed(args.seed)
        student = networks.build(args.backbone, scale)
        dckd = distillation(args, student, recipe)
        pairs, val_sets = load_data(task, args)
        crops = RandomCrops.of(recipe, pairs, scale=scale, seed=args.seed)
        workers = workers_of(args, pairs)
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
