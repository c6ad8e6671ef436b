"""The training commands' options, and what they mean: recipe, devices, folder, teacher, weights."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from . import networks
from .data.crops import check_shares
from .data.datasets import MEMORY, Pair, PairFiles
from .networks import KNOWN, SPECIFICATIONS, teacher_of
from .recipe import PAPER, SMALL, Recipe
from .training.checkpoint import checksum
from .training.console import check_folder
from .training.loop import Run

METHODS = {  # DCKD's two terms, each on or off; None where DCKD has no part
    "scratch": None,
    "logits": None,
    "dcr": (True, False),
    "dmm": (False, True),
    "dckd": (True, True),
}
SIZES = {
    "iterations": "optimizer steps; the recipe's stages are shortened with them",
    "batch_size": "crops per step and process, in all stages",
    "crop": "LQ pixels a side, in all stages",
}
WEIGHTS = ("dcr_weight", "dmm_weight")
LEAST_SCALE = {"sr": 2, "deblur": 1, "derain": 1}
MAX_SEED = 2**32 - 1  # NumPy's
FILE_WORKERS = 4  # processes, and no more than there are cores
MIN_OUTPUT = 16  # pixels a side that the encoder needs
DECISIVE = ("task", "scale", "backbone", "method", "seed")  # besides the recipe and what is read


def parse(description: str | None, task: str, args: Sequence[str] | None = None) -> Any:
    """What a command line asks for.

    Args:
        description: The command's docstring.
        task: "sr", "deblur" or "derain".
        args: The command line without the command; None for this process's.
    """
    made = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(task=task, scale=1)
    add = made.add_argument
    if task == "sr":
        add("--scale", type=int, metavar="N", default=2, help="HR size over LR size (default: 2)")
    usable = networks.names_for(task)
    known = [name for name, weights in KNOWN.items() if weights.backbone in usable]
    add("--data", type=Path, metavar="DIR", help="training images (default: scikit-image's)")
    text = "validation images; repeatable (default: photographs of scikit-image that are held out)"
    add("--val", type=Path, metavar="DIR", action="append", help=text)
    text = f"the student (default: tiny): {', '.join(usable)}"
    add("--backbone", choices=usable, metavar="NAME", default="tiny", help=text)
    text = "scratch: no teacher; logits: plain distillation; dcr, dmm: one term (default: dckd)"
    add("--method", choices=list(METHODS), default="dckd", help=text)
    text = "name or path of DCKD's encoder (default: compact)"
    add("--encoder", metavar="NAME", default="compact", help=text)
    text = f"a file; for the paper's students also a URL or {', '.join(known)} (default: embedded)"
    add("--teacher", metavar="T", help=text)
    text = "seed of weights, crops and negatives (default: 0)"
    add("--seed", type=int, metavar="N", default=0, help=text)
    text = "folder of the results (default: one in runs/, named by the run)"
    add("--output", type=Path, metavar="DIR", help=text)
    add("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    add("--skip-bad", action="store_true", help="leave unreadable images out")
    _add_recipe(made, [name for name in PAPER if name in usable])
    _add_scale(made)
    return made.parse_args(args)


def _add_recipe(made: argparse.ArgumentParser, students: Sequence[str]) -> None:
    add = made.add_argument_group("recipe", "numbers default to the recipe's").add_argument
    text = f"small: minutes; paper: the paper's, for {', '.join(students)} (default: small)"
    add("--recipe", choices=["small", "paper"], default="small", help=text)
    for name, meaning in SIZES.items():
        add(_option(name), type=int, metavar="N", help=meaning)
    for name in WEIGHTS:
        term, default = name.removesuffix("_weight").upper(), getattr(Recipe, name)
        text = f"{term}'s weight (default: {default:g}); fixed unless --balance is given too"
        add(_option(name), type=float, metavar="W", help=text)
    text = "DMM as in Eq. 9, or as in the released code"
    add("--form", choices=["cross_entropy", "released"], help=text)
    text = "DCKD's gradient as a fraction of an L1's, which the weights share; 0 for fixed weights"
    add("--balance", type=float, metavar="F", help=text)


def _add_scale(made: argparse.ArgumentParser) -> None:
    about = "accelerate launch or torchrun start several processes, see examples/README.md"
    add = made.add_argument_group("devices and memory", about).add_argument
    text = "precision of student and teacher (default: what accelerate launch says)"
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
        ValueError: The paper has none for this backbone, a number is out of range or of a loss
            that the method does not have, or the processes cannot share a step's crops equally.
    """
    if args.scale < LEAST_SCALE[args.task]:
        raise ValueError(f"got --scale {args.scale}; expected {LEAST_SCALE[args.task]} or more")
    if not 0 <= args.seed <= MAX_SEED:
        raise ValueError(f"got --seed {args.seed}; expected 0 to {MAX_SEED}")
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
    _check_outputs(recipe, args.scale)
    return recipe


def _weighted(recipe: Recipe, args: argparse.Namespace) -> Recipe:
    """The recipe with the command line's weights, which are fixed unless it balances them too."""
    _refuse_idle(args)
    for name in (*WEIGHTS, "balance"):
        number = getattr(args, name)
        if number is not None and not 0 <= number < float("inf"):
            raise ValueError(f"got {_option(name)} {number}; expected 0 or more")
    given = {name: getattr(args, name) for name in WEIGHTS if getattr(args, name) is not None}
    if given:
        recipe = replace(recipe, balance=None, **given)
    if args.form is not None:
        recipe = replace(recipe, form=args.form)
    if args.balance is not None:
        recipe = replace(recipe, balance=args.balance or None)
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


def folder_of(args: argparse.Namespace, method: str | None = None) -> Path:
    """The output folder, in whose place a file is refused; or another method's, by default."""
    name = args.task if args.task != "sr" else f"sr_x{args.scale}"
    folder = Path("runs") / f"{name}_{method or args.method}_{args.seed}"
    if method is not None:
        return folder
    folder = args.output or folder
    check_folder("--output", folder)
    return folder


def workers_of(args: argparse.Namespace, pairs: Sequence[Pair]) -> int:
    """Processes that read ahead; pairs in memory are there sooner than a process can hand on."""
    if args.workers is not None and args.workers < 0:
        raise ValueError(f"got --workers {args.workers}; expected 0 or more")
    ahead = min(FILE_WORKERS, os.cpu_count() or 1)
    default = ahead if isinstance(pairs, PairFiles) else 0
    return default if args.workers is None else int(args.workers)


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
    if paper:
        teacher = networks.load_teacher(args.backbone, source, scale)
    elif source is None:
        raise ValueError(
            f"no teacher is embedded for scale {scale}: train one by --scale {scale} "
            "--method scratch --backbone small and pass it by --teacher"
        )
    else:
        _refuse_known(str(source), args.backbone)
        teacher = networks.load(source)
    if teacher.scale != scale:
        raise ValueError(f"{source}: a network for x{teacher.scale}; expected x{scale}")
    teacher.requires_grad_(False)
    if not torch.isfinite(teacher(torch.rand(1, 3, 32, 32))).all():
        raise ValueError(f"{source}: this teacher's output is not finite; expected an image")
    return teacher.to(device)


def _refuse_known(source: str, backbone: str) -> None:
    """Require a file of a small network's teacher: names and URLs are of the paper's networks."""
    known = KNOWN.get(source)
    if known is None and "://" not in source:
        return
    students = [
        name
        for name in SPECIFICATIONS
        if name != teacher_of(name) and (known is None or teacher_of(name) == known.backbone)
    ]
    raise ValueError(
        f"got --teacher {source} for {backbone}; expected a file, or --backbone "
        f"{' or '.join(students)}: names and URLs are of the paper's networks"
    )


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
    read = {"teacher": teacher if args.method != "scratch" else None, "encoder": encoder}
    sums = {
        name: checksum(tensor.cpu() for tensor in module.state_dict().values())
        for name, module in read.items()
        if module is not None
    }
    return {
        **{name: getattr(args, name) for name in DECISIVE},
        **asdict(run.recipe),
        "data": _fingerprint(run.crops.pairs),
        **sums,
        "processes": run.accelerator.num_processes,
        "parts": run.accelerator.gradient_accumulation_steps,
        "precision": run.accelerator.mixed_precision,
    }


def _fingerprint(pairs: Sequence[Pair]) -> str:
    """A checksum of pixels, or, where those are too many to be read, of names and file sizes."""
    if not isinstance(pairs, PairFiles):
        return checksum(image for _, *both in pairs for image in both)
    facts = [(f.name, *(p.stat().st_size for p in (f.hq, f.lq) if p)) for f in pairs.files]
    return checksum([bytearray(repr(facts).encode())])
