"""The training commands' options."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import config, networks
from .data.datasets import MEMORY
from .data.layouts import TwoFolders
from .networks import KNOWN
from .networks.own import is_own
from .recipe import DCR_WEIGHT, DMM_WEIGHT, PAPER
from .training.trackers import TRACKERS

METHODS = {  # DCKD's two terms, each on or off; None where DCKD has no part
    "scratch": None,
    "logits": None,
    "dcr": (True, False),
    "dmm": (False, True),
    "dckd": (True, True),
}
# of which one on the command line takes the place of all in a file of options
ALTERNATIVES = (("data", "lq", "gt"), ("val", "val_lq", "val_gt"), ("log_with",))
MAX_SEED = 2**32 - 1  # NumPy's
MAX_SCALE = 8
MAX_WORKERS = 256


def parse(description: str | None, task: str, args: Sequence[str] | None = None) -> Any:
    """What a command line asks for.

    Args:
        description: The command's docstring.
        task: "sr", "deblur" or "derain".
        args: The command line without the command; None for this process's.

    Raises:
        RefusedError: A file of options cannot be read or is wrong.
    """
    line = sys.argv[1:] if args is None else args
    made = parser_of(description, task)
    chosen = made.parse_args(line)
    if chosen.config is not None:
        given = [group for group in ALTERNATIVES if any(getattr(chosen, each) for each in group)]
        but = {name for group in given for name in group}
        line = [*config.read(chosen.config, parser_of(description, task), but), *line]
        chosen = made.parse_args(line)
    chosen.options = config.options(made, chosen)
    usable = networks.names_for(task)
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
    chosen.output = chosen.output or default_folder(chosen, chosen.method)
    return chosen


def default_folder(args: argparse.Namespace, method: str) -> Path:
    """Where results of a method go that has no --output."""
    name = args.task if args.task != "sr" else f"sr_x{args.scale}"
    return Path("runs") / f"{name}_{method}_{args.seed}"


def parser_of(description: str | None, task: str) -> argparse.ArgumentParser:
    """The options of a task's command."""
    made = argparse.ArgumentParser(
        usage="%(prog)s [options]",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.set_defaults(task=task, scale=1)
    folder, whole = {"type": path, "metavar": "DIR"}, {"type": int, "metavar": "N"}
    add = made.add_argument
    text = "options from a YAML file, as each run leaves one; those given here override it"
    add("--config", type=path, metavar="FILE", help=text)
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

    add = made.add_argument_group("results").add_argument
    add("--output", **folder, help="their folder (default: one in runs/, named by the run)")
    add("--resume", action="store_true", help="go on from the checkpoint in the output folder")
    text = "steps between validations, the best of which is kept (default: a tenth of all)"
    add("--val-every", **whole, help=text)
    text = "steps between checkpoints (default: a twentieth of all, and 1000 at most)"
    add("--save-every", **whole, help=text)
    text = "also write student.onnx, which is compared with the student in onnxruntime"
    add("--export", choices=["onnx"], help=text)
    text = f"also log to {' or '.join(TRACKERS)}, which has to be installed; repeatable"
    add("--log-with", nargs="+", action="extend", choices=TRACKERS, metavar="NAME", help=text)

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
    return made


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
