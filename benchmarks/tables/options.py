"""The command line of `python -m benchmarks.tables`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables.arms import TABLES
from benchmarks.tables.budgets import BUDGETS
from benchmarks.tables.study import Options
from dckd_losses.degradations import DEGRADATIONS
from examples.restoration import backbones

RECIPE: Mapping[str, tuple[type, str]] = {
    "iterations": (int, "optimizer steps of each student"),
    "batch_size": (int, "crops a step"),
    "crop": (int, "LQ pixels a side"),
    "lr": (float, "highest learning rate"),
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
    add("--output", type=Path, default=Path("runs/tables"), help="folder (default: runs/tables)")
    add("--name", help="of the files (default: TABLE_BUDGET)")
    add("--plan", action="store_true", help="say what there is to do, and stop")
    add("--block", metavar="LABEL", help='one of the networks of --budget paper, as in "RCAN x2"')
    add("--arms", nargs="+", metavar="ARM", help="only these")
    add("--seeds", nargs="+", type=int, metavar="N", help="of weights, crops and negatives")
    add("--development", action="store_true", help="score on development images, to choose by")
    add("--given", nargs="+", default=[], metavar="ARM=FILE", help="students that are trained")
    add("--student", choices=backbones.NAMES, help="another network (default: the budget's)")
    add("--teacher", metavar="FILE", help="file, URL or name (default: the budget's)")
    add("--encoder", metavar="NAME", help="name or path, of all contrastive methods")
    add("--workers", type=int, metavar="N", default=0, help="processes that read crops ahead")
    recipe = made.add_argument_group("training, where not as in the budget")
    for name, (kind, text) in RECIPE.items():
        recipe.add_argument(_flag(name), type=kind, metavar="N", help=text)
    losses = made.add_argument_group("DCKD, where not as by default nor as an arm says itself")
    for name, known in LOSSES.items():
        losses.add_argument(_flag(name), **known)
    return made


def options(args: argparse.Namespace) -> Options:
    """What the command line asks for.

    Raises:
        ValueError: An arm's file is not written ARM=FILE, or a seed is below 0 or said twice.
    """
    given = dict(item.partition("=")[::2] for item in args.given)
    if not all(given.values()):
        raise ValueError(f"got --given {' '.join(args.given)}; expected ARM=FILE")
    check_seeds(args.seeds or ())
    return Options(
        args.table,
        args.budget,
        recipe=_set(args, RECIPE),
        losses=_set(args, LOSSES),
        given=given,
        **{name: getattr(args, name) for name in (
            "block", "arms", "seeds", "encoder", "student", "teacher", "development",
        )},
    )  # fmt: skip


def check_seeds(seeds: Sequence[int]) -> None:
    """Require different seeds: equal ones make equal runs, whose spread would be none.

    Raises:
        ValueError: Two are equal, or one is below 0.
    """
    if any(seed < 0 for seed in seeds) or len(set(seeds)) < len(seeds):
        raise ValueError(
            f"got --seeds {' '.join(map(str, seeds))}; expected different numbers from 0"
        )


def _set(args: argparse.Namespace, names: Mapping[str, Any] | Sequence[str]) -> dict[str, Any]:
    found = {name: getattr(args, name) for name in names}
    return {name: value for name, value in found.items() if value is not None}


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
