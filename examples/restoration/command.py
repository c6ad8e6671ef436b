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

from dckd_losses.checks import MIN_SIZE, check_number

from . import networks
from .data.crops import check_shares
from .data.datasets import MEMORY, Pair, PairFiles
from .data.layouts import TwoFolders
from .networks import KNOWN, SPECIFICATIONS
from .networks.own import PROBE, check_crops, is_own
from .recipe import DCR_WEIGHT, DMM_WEIGHT, PAPER, SMALL, Recipe
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
WEIGHTS = ("dcr_weight", "dmm_weight")
MAX_SEED = 2**32 - 1  # NumPy's
MAX_SCALE = 8
MAX_WORKERS = 256
FILE_WORKERS = 4  # processes, and no more than there are cores
WRITTEN = ("checkpoint.pt", "curves.png", "log.json", "metrics.json", "side_by_side.png")
# besides the recipe and what is read
DECISIVE = ["task", "scale", "backbone", "backbone_options", "teacher_network", "method", "seed"]


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
    folder, whole = {"type": path, "metavar": "DIR"}, {"type": int, "metavar": "N"}
    add = made.add_argument
    if task == "sr":
        add("--scale", **whole, default=2, help="HR size over LR size (default: 2)")
    usable = networks.names_for(task)
    add("--data", **folder, help="training images (default: scikit-image's)")
    text = "validation images; repeatable (default: photographs of scikit-image that are held out)"
    add("--val", **folder, action="append", help=text)
    add_two_folders(made, "--data")
    add_two_folders(made, "--val", "val-")
    text = (
        f"the student (default: tiny): {', '.join(usable)}; or its code, file.py:callable or "
        "package.module:callable, and options for that"
    )
    add("--backbone", nargs="+", metavar=("NAME", "KEY=VALUE"), default=["tiny"], help=text)
    text = "scratch: no teacher; logits: plain distillation; dcr, dmm: one term (default: dckd)"
    add("--method", choices=list(METHODS), default="dckd", help=text)
    text = "name or path of DCKD's encoder (default: compact)"
    add("--encoder", metavar="NAME", default="compact", help=text)
    known = ", ".join(name for name, weights in KNOWN.items() if weights.backbone in usable)
    text = f"a file of weights, a URL, or {known} (default: embedded)"
    add("--teacher", metavar="T", help=text)
    text = (
        "its code, file.py:callable or package.module:callable, and options for that (default: "
        "the paper's for a student of the paper; otherwise recognised by its tensors)"
    )
    add("--teacher-network", nargs="+", metavar=("CODE", "KEY=VALUE"), default=[], help=text)
    add("--seed", **whole, default=0, help="of weights, crops and negatives (default: 0)")
    add("--output", **folder, help="of the results (default: one in runs/, named by the run)")
    add("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    add("--skip-bad", action="store_true", help="leave unreadable images out")

    add = made.add_argument_group("recipe", "numbers default to the recipe's").add_argument
    students = ", ".join(name for name in PAPER if name in usable)
    text = f"small: minutes; paper: the paper's, for {students} (default: small)"
    add("--recipe", choices=["small", "paper"], default="small", help=text)
    text = "optimizer steps; the recipe's stages are shortened with them"
    add("--iterations", **whole, help=text)
    add("--batch-size", **whole, help="crops per step and process, in all stages")
    add("--crop", **whole, help="LQ pixels a side, in all stages")
    for term, default in (("DCR", DCR_WEIGHT), ("DMM", DMM_WEIGHT)):
        text = f"{term}'s weight (default: {default:g}); fixed unless --balance is given too"
        add(f"--{term.lower()}-weight", type=float, metavar="W", help=text)
    text = "DMM as in Eq. 9, or as in the released code"
    add("--form", choices=["cross_entropy", "released"], help=text)
    text = "DCKD's gradient as a fraction of an L1's, which the weights share; 0 for fixed weights"
    add("--balance", type=float, metavar="F", help=text)

    about = "accelerate launch or torchrun start several processes, see examples/README.md"
    add = made.add_argument_group("devices and memory", about).add_argument
    text = "precision of student and teacher (default: what accelerate launch says)"
    add("--mixed-precision", choices=["no", "fp16", "bf16"], help=text)
    text = "go through each step's crops in N parts (default: 1)"
    add("--gradient-accumulation", **whole, default=1, help=text)
    text = "compute the student's features again in backward instead of keeping them"
    add("--gradient-checkpointing", action="store_true", help=text)
    text = f"gigabytes of pixels up to which a data set is kept in memory (default: {MEMORY:g})"
    add("--memory", type=float, metavar="GB", default=MEMORY, help=text)
    text = "processes that read ahead (default: 4 where a data set is too large for memory)"
    add("--workers", **whole, help=text)
    chosen = made.parse_args(args)
    chosen.backbone, *chosen.backbone_options = chosen.backbone
    named = chosen.backbone in usable and not chosen.backbone_options
    if not (named or is_own(chosen.backbone)):
        said = " ".join([chosen.backbone, *chosen.backbone_options])
        made.error(
            f"argument --backbone: invalid choice: {said!r} (choose from {', '.join(usable)}, or "
            "file.py:callable with key=value options)"
        )
    chosen.data = source_of(made, chosen, "data")
    val = source_of(made, chosen, "val", "val_")
    chosen.val = [val] if isinstance(val, TwoFolders) else val
    return chosen


def add_two_folders(parser: argparse.ArgumentParser, instead: str, prefix: str = "") -> None:
    """Options for two folders given outright."""
    text = f"instead of {instead}: low-quality images, beside --{prefix}gt"
    parser.add_argument(f"--{prefix}lq", type=path, metavar="DIR", help=text)
    text = f"instead of {instead}: ground truths; without --{prefix}lq the others are made"
    parser.add_argument(f"--{prefix}gt", type=path, metavar="DIR", help=text)


def source_of(
    parser: argparse.ArgumentParser, args: argparse.Namespace, name: str, prefix: str = ""
) -> Any:
    """The option of this name, or the two folders given in its place."""
    usual, lq, gt = (vars(args).pop(each) for each in (name, f"{prefix}lq", f"{prefix}gt"))
    option = f"--{prefix.replace('_', '-')}"
    if usual and (lq or gt):
        parser.error(f"got --{name} and {option}{'gt' if gt else 'lq'}; expected one of them")
    if lq and not gt:
        parser.error(f"got {option}lq without {option}gt; expected both")
    return TwoFolders(lq, gt) if gt else usual


def path(text: str) -> Path:
    """A path of the command line; an empty one, as of an unset variable, would be the folder `.`"""
    if not text.strip():
        raise argparse.ArgumentTypeError("got an empty path")
    return Path(text)


def accelerator_of(args: argparse.Namespace) -> Accelerator:
    """The devices that the command line and its launcher ask for."""
    check_number("--gradient-accumulation", args.gradient_accumulation, at_least=1, whole=True)
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
    check_number("--seed", args.seed, at_least=0, at_most=MAX_SEED, whole=True)
    check_number("--memory", args.memory, at_least=0)
    if args.task == "sr":
        check_number("--scale", args.scale, at_least=2, at_most=MAX_SCALE, whole=True)
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


def default_folder(args: argparse.Namespace, method: str) -> Path:
    """Where results of a method go that has no --output."""
    name = args.task if args.task != "sr" else f"sr_x{args.scale}"
    return Path("runs") / f"{name}_{method}_{args.seed}"


def folder_of(args: argparse.Namespace) -> Path:
    """The output folder; ValueError where files or folders are in the way."""
    folder = args.output or default_folder(args, args.method)
    check_folder("--output", folder, WRITTEN)
    return folder


def workers_of(args: argparse.Namespace, pairs: Sequence[Pair]) -> int:
    """Processes that read ahead; pairs in memory are there sooner than a process can hand on."""
    if args.workers is None:
        reads = isinstance(pairs, PairFiles) and not pairs.in_memory
        return min(FILE_WORKERS, os.cpu_count() or 1) if reads else 0
    check_number("--workers", args.workers, at_least=0, at_most=MAX_WORKERS, whole=True)
    return int(args.workers)


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
