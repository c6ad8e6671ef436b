"""The paper's tables and Figure 8 as commands.

    python -m benchmarks.tables table1
    python -m benchmarks.tables table5 --budget small
    python -m benchmarks.tables figure8b --budget paper --plan

Prints the plan, with its cost from measured steps, before anything is trained. Ctrl-C stops; the
same command goes on from there, and a second process with the same command takes a share of the
runs. Runs of equal settings are trained once for all tables.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from accelerate import Accelerator

from benchmarks import provenance
from benchmarks.tables import networks
from benchmarks.tables.arms import TABLES
from benchmarks.tables.cost import plan
from benchmarks.tables.options import options, parser
from benchmarks.tables.output import write_table
from benchmarks.tables.store import Store, write
from benchmarks.tables.study import Options, parts
from examples.restoration.console import exit_status, refusing


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""
    args = parser().parse_args()

    def whole() -> None:
        with refusing():
            if args.table == "table1":
                table1(args)
            else:
                run(args, options(args))

    return exit_status(whole, again="the same command")


def run(args: argparse.Namespace, chosen: Options) -> None:
    """Plan, train what is missing, evaluate, write."""
    table = TABLES[chosen.table]
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    store = Store(args.output / "runs", accelerator, args.workers)
    found = parts(table, chosen, accelerator.device.type)
    for part in found:
        print(f"{chosen.table}, {part.block.label}, {part.block.student}", flush=True)
        print(plan(part.jobs, store), flush=True)
    if args.plan:
        return
    for part in found:
        jobs = part.jobs
        store.complete(jobs.pop("Teacher", []))
        longest = max(map(len, jobs.values()), default=0)
        # seed by seed, so that what is there on the way can be compared
        store.complete(runs[i] for i in range(longest) for runs in jobs.values() if i < len(runs))
    files = write_table(table, chosen, found, store, stem(args))
    print(stem(args).with_name(f"{stem(args).name}.md").read_text(encoding="utf-8"))
    print("written: " + ", ".join(map(str, files)))


def table1(args: argparse.Namespace) -> None:
    """Count; nothing is trained."""
    rows, machine = networks.rows(), provenance.machine(torch.device("cpu"))
    head = {"table": "table1", "command": provenance.command(), **machine}
    text = networks.markdown(rows, head)
    place = stem(args)
    place.parent.mkdir(parents=True, exist_ok=True)
    write(place.with_name(f"{place.name}.json"), {**head, "rows": rows})
    place.with_name(f"{place.name}.md").write_text(text, encoding="utf-8")
    print(text)


def stem(args: argparse.Namespace) -> Path:
    """Path of the files without their ends."""
    usual = args.table if args.table == "table1" else f"{args.table}_{args.budget}"
    path: Path = args.output / (args.name or usual)
    return path


if __name__ == "__main__":
    sys.exit(main())
