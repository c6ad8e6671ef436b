"""Who teaches a student, by which losses, and what of it decides the student's weights."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator

from . import backbones, teachers
from .checkpoints import checksum
from .data import Pair, PairFiles
from .options import METHODS, WEIGHTS
from .recipes import Recipe
from .run import Run
from .sources import KNOWN
from .specifications import teacher_of

TEACHER_BACKBONE = "small"  # what the embedded teachers are
DECISIVE = ("task", "scale", "backbone", "method", "seed")  # besides the recipe and what is read


def open_teacher(args: argparse.Namespace, embedded: Path | None) -> nn.Module | None:
    """The teacher of the command line or the embedded one; every method but scratch needs one."""
    source, scale, paper = args.teacher, args.scale, args.backbone in backbones.SPECIFICATIONS
    trains_teacher = args.method == "scratch" and args.backbone == TEACHER_BACKBONE
    if source is None and not (paper or trains_teacher):
        source = embedded
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
        _refuse_known(str(source), args.backbone)
        teacher = backbones.load(source)
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
        for name in backbones.SPECIFICATIONS
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
