"""What the training commands' options mean: devices, recipe, folder, teacher, weights."""

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from dckd_losses.checks import MIN_SIZE, check_number

from . import networks
from .command import MAX_SCALE, MAX_SEED, MAX_WORKERS, METHODS
from .data.crops import RandomCrops, check_shares
from .data.datasets import Pair, PairFiles
from .networks import SPECIFICATIONS
from .networks.own import PROBE, check_crops
from .recipe import PAPER, SMALL, Recipe
from .results import export, figures
from .results.evaluation import validation
from .training import trackers
from .training.checkpoint import checksum
from .training.console import check_folder
from .training.gradient_checkpointing import checkpoint_blocks
from .training.loop import Run

WEIGHTS = ("dcr_weight", "dmm_weight")
FILE_WORKERS = 4  # processes, and no more than there are cores
WRITTEN = (
    "best.safetensors",
    "checkpoint.pt",
    "config.yaml",
    "curves.png",
    "log.json",
    "metrics.json",
    "side_by_side.png",
    "student.onnx",
    "student.safetensors",
)
# besides the recipe and what is read
DECISIVE = ["task", "scale", "backbone", "backbone_options", "teacher_network", "method", "seed"]


def check(args: argparse.Namespace) -> None:
    """Refuse what the options alone show to be wrong; ValueError says what is expected."""
    check_number("--seed", args.seed, at_least=0, at_most=MAX_SEED, whole=True)
    check_number("--gradient-accumulation", args.gradient_accumulation, at_least=1, whole=True)
    check_number("--memory", args.memory, at_least=0)
    for option, value in (("--val-every", args.val_every), ("--save-every", args.save_every)):
        check_number(option, value, at_least=1, whole=True, or_none=True)
    most = {"at_most": MAX_WORKERS, "whole": True, "or_none": True}
    check_number("--workers", args.workers, at_least=0, **most)
    if args.task == "sr":
        check_number("--scale", args.scale, at_least=2, at_most=MAX_SCALE, whole=True)
    trackers.check(args.log_with or [])
    if args.export:
        export.check()
    check_folder("--output", args.output, WRITTEN)


def accelerator_of(args: argparse.Namespace) -> Accelerator:
    """The devices that the command line and its launcher ask for."""
    if args.backbone in networks.BACKBONES and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)  # so small, two threads gain little, and lose much beside others
    return Accelerator(
        # without it, torchrun's processes on a machine without GPUs would not meet
        cpu=not torch.accelerator.is_available(),
        mixed_precision=args.mixed_precision,
        gradient_accumulation_steps=args.gradient_accumulation,
        log_with=args.log_with,
        project_dir=args.output,
    )


def recipe_of(args: argparse.Namespace, accelerator: Accelerator) -> Recipe:
    """The recipe with what the command line changes in it.

    Raises:
        ValueError: The paper has none for this backbone, a number is out of range or of a loss
            that the method does not have, or the processes cannot share a step's crops equally.
    """
    recipe = SMALL.get(args.backbone, SMALL[args.task])
    if args.recipe == "paper":
        if args.backbone not in PAPER:
            known = ", ".join(name for name in PAPER if name in networks.names_for(args.task))
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
    for stage in recipe.all_stages:
        if (side := stage.crop * args.scale) < MIN_SIZE:
            raise ValueError(
                f"got --crop {stage.crop} at scale {args.scale}: outputs of {side}x{side} pixels; "
                f"expected {MIN_SIZE}x{MIN_SIZE} or more"
            )
    return recipe


def _weighted(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe with the command line's losses; weights are fixed unless it balances them too."""
    needed = {"dcr_weight": (0,), "dmm_weight": (1,), "form": (1,), "balance": (0, 1)}
    given = {name: getattr(args, name) for name in needed if getattr(args, name) is not None}
    for name, value in given.items():
        option = f"--{name.replace('_', '-')}"
        having = [m for m, has in METHODS.items() if has and any(has[i] for i in needed[name])]
        if args.method not in having:
            raise ValueError(
                f"got {option} {value} for --method {args.method}; expected --method "
                f"{' or '.join(having)}"
            )
        if name != "form":
            check_number(option, value, at_least=0)
    if given.keys() & set(WEIGHTS):
        given.setdefault("balance", None)
    if given.get("balance") == 0:
        given["balance"] = None
    return replace(recipe, **given)


def run_of(
    args: argparse.Namespace,
    recipe: Recipe,
    student: nn.Module,
    crops: RandomCrops,
    accelerator: Accelerator,
    val_sets: Mapping[str, Sequence[Pair]],
) -> Run:
    """The student's run, validated on the first of the sets."""
    if args.gradient_checkpointing:
        checkpoint_blocks(student)
    val, workers = next(iter(val_sets.values())), args.workers
    if workers is None:  # pairs in memory are there sooner than a process can hand on
        reads = isinstance(crops.pairs, PairFiles) and not crops.pairs.in_memory
        workers = min(FILE_WORKERS, os.cpu_count() or 1) if reads else 0
    return Run(
        args.output,
        recipe,
        student,
        crops,
        accelerator,
        validate=validation(val, args.task, args.scale, accelerator),
        sample=figures.sample(val, args.scale),
        save=partial(networks.save, student, task=args.task, method=args.method),
        workers=workers,
        val_every=args.val_every,
        save_every=args.save_every,
    )


def open_teacher(
    args: argparse.Namespace, embedded: Path | None, device: torch.device
) -> nn.Module | None:
    """The teacher of the command line or the embedded one, frozen; scratch may do without one."""
    source, scale, paper = args.teacher, args.scale, args.backbone in SPECIFICATIONS
    trains_teacher = args.method == "scratch" and args.backbone == "small"
    if source is None and not (paper or trains_teacher):
        source = embedded
    if source is None and args.method == "scratch":
        return None
    if args.teacher is None and args.teacher_network:
        raise ValueError("got --teacher-network without --teacher; expected both")
    if paper and not args.teacher_network:
        teacher = networks.load_teacher(args.backbone, source, scale)
    elif source is None:
        raise ValueError(
            f"no teacher is embedded for scale {scale}: train one by --scale {scale} "
            "--method scratch --backbone small and pass it by --teacher"
        )
    else:
        teacher = networks.open_network(str(source), scale, args.teacher_network)
    if not torch.isfinite(teacher(torch.rand(1, 3, PROBE, PROBE))).all():
        raise ValueError(f"{source}: this teacher's output is not finite; expected an image")
    return teacher.to(device)


def dckd_settings(args: argparse.Namespace, recipe: Recipe) -> dict[str, Any]:
    """The recipe's settings of `DCKDLoss`; a term that the method has not gets weight 0."""
    terms = METHODS[args.method] or (False, False)
    weights = {
        name: getattr(recipe, name) if on else 0.0 for name, on in zip(WEIGHTS, terms, strict=True)
    }
    return {"form": recipe.form, "balance": recipe.balance, **weights}


def settings(
    args: argparse.Namespace, run: Run, teacher: nn.Module | None, encoder: nn.Module | None
) -> dict[str, Any]:
    """What determines the student's weights: options, the recipe, checksums of what was read."""
    if teacher is not None:
        check_crops(teacher, (stage.crop for stage in run.recipe.all_stages), trained=False)
    read = {"teacher": teacher if args.method != "scratch" else None, "encoder": encoder}
    sums = {
        name: checksum(tensor.cpu() for tensor in module.state_dict().values())
        for name, module in read.items()
        if module is not None
    }
    return {
        **{name: getattr(args, name) for name in DECISIVE},
        **asdict(run.recipe),
        "data": checksum([bytearray(repr(run.crops.drawn).encode())]),
        **sums,
        "processes": run.accelerator.num_processes,
        "parts": run.accelerator.gradient_accumulation_steps,
        "precision": run.accelerator.mixed_precision,
    }
