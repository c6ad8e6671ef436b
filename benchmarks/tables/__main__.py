"""The paper's tables and Figure 8 as commands.

    python -m benchmarks.tables table1
    python -m benchmarks.tables table5 --budget small
    python -m benchmarks.tables figure8b --budget paper --plan
    python -m benchmarks.tables study --encoders compact small.safetensors random.safetensors

Prints the plan, with its cost from measured steps, before anything is trained. Ctrl-C stops; the
same command goes on from there, and a second process with the same command takes a share of the
runs. Runs of equal settings are trained once for all tables. `study --encoders` compares encoders:
what each gains beside plain distillation of the same seed, and what it adds to a training step.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from benchmarks.tables import report
from benchmarks.tables.runs import parts
from benchmarks.tables.specs import BUDGETS, TABLES, encoder_study
from benchmarks.tables.store import Store, plan
from dckd_losses.negatives import DEGRADATIONS
from examples.restoration import networks
from examples.restoration.training.console import exit_status, refusing

LEAST = {"num_negatives": 1, "interval": 1, "iterations": 1, "batch_size": 1, "crop": 1}  # else 0
RECIPE: Mapping[str, Mapping[str, Any]] = {
    "iterations": {"type": int, "metavar": "N", "help": "optimizer steps of each student"},
    "batch_size": {"type": int, "metavar": "N", "help": "crops a step"},
    "crop": {"type": int, "metavar": "N", "help": "LQ pixels a side"},
    "lr": {"type": float, "metavar": "N", "help": "highest learning rate"},
}
LOSSES: Mapping[str, Mapping[str, Any]] = {  # of DCKD
    "dcr_weight": {"type": float, "help": "of DCR"},
    "dmm_weight": {"type": float, "help": "of DMM"},
    "logits_weight": {"type": float, "help": "of the L1 to the teacher beside them"},
    "form": {"choices": ["cross_entropy", "released"], "help": "of DMM"},
    "level_weights": {"type": float, "nargs": 5, "metavar": "W", "help": "of DCR, fine to coarse"},
    "balance": {
        "type": float,
        "help": "gradient of DCKD and other contrastive methods as a fraction of an L1's, 0 for "
        "fixed weights",
    },
    "num_negatives": {"type": int, "help": "of DCR"},
    "degradation": {"choices": list(DEGRADATIONS), "help": "of the negatives' inputs"},
    "interval": {"type": int, "help": "steps between the history's first updates"},
}


def parser() -> argparse.ArgumentParser:
    """All options; unset ones leave the budget's recipe and the library's defaults alone."""
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.tables",
        description="Train and evaluate what one of the paper's tables compares, or Figure 8; a "
        "second call continues where the first stopped.",
    )
    add = made.add_argument
    add("table", choices=["table1", *TABLES], help="which")
    add(
        "--budget",
        choices=list(BUDGETS),
        default="small",
        help="how large the runs are (default: small)",
    )
    add("--output", default="runs/tables", help="folder (default: runs/tables)")
    add("--name", help="of the files (default: TABLE_BUDGET)")
    add("--plan", action="store_true", help="say what there is to do, and stop")
    add("--block", metavar="LABEL", help='one of the networks of --budget paper, as in "RCAN x2"')
    add("--arms", nargs="+", metavar="ARM", help="only these")
    add("--seeds", nargs="+", type=int, metavar="N", help="of weights, crops and negatives")
    add("--development", action="store_true", help="score on development images, to choose by")
    add("--student", choices=networks.NAMES, help="another network (default: the budget's)")
    add("--teacher", metavar="FILE", help="file, URL or name (default: the budget's)")
    add(
        "--teacher-network",
        nargs="+",
        metavar=("CODE", "KEY=VALUE"),
        help="its network where the file does not say: file.py:callable or module:callable",
    )
    add("--sets", nargs="+", metavar="SET", help="to test on: names or folders")
    add("--development-set", metavar="SET", help="of the curves, and of --development")
    add("--encoder", metavar="NAME", help="name or path, of all contrastive methods")
    add("--encoders", nargs="+", metavar="NAME", help="of study: names or paths to compare")
    add("--workers", type=int, metavar="N", default=0, help="processes that read crops ahead")
    recipe = made.add_argument_group("training, where not as in the budget")
    losses = made.add_argument_group("DCKD, where not as by default nor as an arm says itself")
    for group, names in ((recipe, RECIPE), (losses, LOSSES)):
        for name, known in names.items():
            group.add_argument(_flag(name), **known)
    return made


def options(args: argparse.Namespace) -> argparse.Namespace:
    """The same, looked at, with what is changed of the budget's recipe and of losses, by name.

    Raises:
        ValueError: A text is empty, a number below what it may be or not finite, a seed said twice.
    """
    for name, value in vars(args).items():
        for each in value if isinstance(value, list) else [value]:
            least, number = LEAST.get(name, 0), isinstance(each, (int, float))
            if each == "" or (number and not least <= each < math.inf):
                expected = f"a number from {least}" if number else "a text"
                raise ValueError(f"got {_flag(name)} {each!r}; expected {expected}")
    seeds = args.seeds or ()
    if len(set(seeds)) < len(seeds):  # equal runs, whose spread would be none
        raise ValueError(f"got --seeds {' '.join(map(str, seeds))}; expected different numbers")
    if args.name and Path(args.name).name != args.name:
        raise ValueError(f"got --name {args.name}; expected one without folders")
    for group, names in (("recipe", RECIPE), ("losses", LOSSES)):
        said = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
        setattr(args, group, said)
    return args


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""
    args = parser().parse_args(argv)

    def whole() -> None:
        with refusing():
            options(args)
            if args.table == "table1":
                print(report.write_networks(stem(args)))
            else:
                run(args)

    return exit_status(whole, again="the same command")


def run(args: argparse.Namespace) -> None:
    """Plan, train what is missing, evaluate, write."""
    if args.encoders and args.table != "study":
        raise ValueError(f"got --encoders for {args.table}; expected it for study only")
    table = encoder_study(args.encoders) if args.encoders else TABLES[args.table]
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    store = Store(Path(args.output) / "runs", accelerator, args.workers)
    found = parts(table, args, accelerator.device.type)
    for part in found:
        print(f"{args.table}, {part.block.label}, {part.block.student}", flush=True)
        print(plan(part.jobs, store), flush=True)
    if args.plan:
        return
    of_blocks = {}
    for part in found:
        jobs, label = part.jobs, part.block.label
        store.complete(jobs.pop("Teacher", []))
        # seed by seed, so that what is there on the way can be compared
        store.complete(run for runs in zip(*jobs.values(), strict=True) for run in runs)
        several = len(found) > 1 or table.comparisons
        end = f"_{label.replace(' ', '_')}" if several else ""
        place = stem(args).with_name(stem(args).name + end)
        files, of_blocks[label] = report.write_table(table, args.table, part, store, place)
        print(place.with_name(f"{place.name}.md").read_text(encoding="utf-8"))
        print("written: " + ", ".join(map(str, files)))
    if table.comparisons:
        print(report.write_comparisons(table, of_blocks, stem(args)))


def stem(args: argparse.Namespace) -> Path:
    """Path of the files without their ends."""
    usual = args.table if args.table == "table1" else f"{args.table}_{args.budget}"
    return Path(args.output) / (args.name or usual)


if __name__ == "__main__":
    sys.exit(main())
