"""The options that the training commands of all three tasks have in common."""

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from dckd_losses.balance import check_fraction
from dckd_losses.dmm import FORMS

from . import backbones
from .pairs import MEMORY, Pair, PairFiles
from .recipes import PAPER, SMALL, Recipe
from .sampling import check_shares

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
    add("--backbone", choices=backbones.NAMES, default="tiny", help="the student (default: tiny)")
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
