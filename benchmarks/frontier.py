"""What encoders cost, and what they gain: DCKD through several beside plain distillation.

    python -m benchmarks.frontier --encoders compact small.safetensors random.safetensors

Every run of a seed has the same initial weights and the same crops in the same order; a gain is the
difference to `Logits` of that seed. The cost is what DCKD adds to a training step, measured in turn
with the others. Runs are kept and continued as those of the tables. `examples/train_encoder.py
--iterations 0` makes the control, an encoder of random weights.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from matplotlib.figure import Figure

from benchmarks import provenance
from benchmarks.tables.arms import TABLES
from benchmarks.tables.cost import step_seconds
from benchmarks.tables.job import Job
from benchmarks.tables.options import check_seeds
from benchmarks.tables.results import columns, gain
from benchmarks.tables.store import Store, write
from benchmarks.tables.study import Options, Part, parts
from dckd_losses import VQGANEncoder
from examples.restoration import backbones
from examples.restoration.console import exit_status, refusing

TABLE, REFERENCE, ARM = "table2", "Logits", "DCKD"
BALANCE = 0.3  # one pull for all encoders, whatever the scale of their distances
WIDE = 3  # times the least cost, from where on the plot's axis is logarithmic
ROUNDS = 3  # of the measurement of a step


def main() -> int:
    """Run the command line; 0, or 2 where the input is at fault, or 130 where it was stopped."""
    args = arguments()

    def whole() -> None:
        with refusing():
            run(args)

    return exit_status(whole, again="the same command")


def arguments() -> argparse.Namespace:
    """What the command line asks for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.frontier",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--encoders", nargs="+", required=True, metavar="NAME", help="names or files")
    add("--budget", choices=["small", "smoke"], default="small", help="how long (default: small)")
    add("--iterations", type=int, metavar="N", help="optimizer steps (default: the budget's)")
    add("--balance", type=float, default=BALANCE, help=f"DCKD's pull (default: {BALANCE})")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N", help="(default: 0 1 2)")
    add("--student", choices=backbones.NAMES, help="network (default: the budget's)")
    add("--teacher", metavar="FILE", help="(default: trained first)")
    add("--output", type=Path, default=Path("runs/frontier"), metavar="STEM", help="of the files")
    return parser.parse_args()


def run(args: argparse.Namespace) -> None:
    """Train what is missing, evaluate, write."""
    check_seeds(args.seeds)
    names = [Path(encoder).stem for encoder in args.encoders]
    if len(set(names)) < len(names):
        raise ValueError(f"got encoders {', '.join(names)}; expected different names")
    sizes = dict(zip(names, map(parameters, args.encoders), strict=True))  # unreadable ones show
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    store = Store(args.output.parent / "runs", accelerator)
    found = {
        name: part_of(args, encoder, accelerator.device.type)
        for name, encoder in zip(names, args.encoders, strict=True)
    }
    for part in found.values():
        for jobs in part.jobs.values():
            store.complete(jobs)
    rows = measure(sizes, found, store)
    first = next(iter(found.values()))
    recipe = first.jobs[ARM][0].recipe
    facts = {
        "command": provenance.command("benchmarks.frontier"),
        **provenance.machine(accelerator.device),
        "seeds": args.seeds,
        "student, teacher": f"{first.block.student}, {args.teacher or first.block.teacher}",
        "training": f"{recipe.iterations:,} steps of {recipe.batch_size} crops of {recipe.crop} "
        f"LR pixels, balance {args.balance:g}",
    }
    write(args.output.with_suffix(".json"), {**facts, "encoders": rows})
    args.output.with_suffix(".md").write_text(markdown(facts, rows), encoding="utf-8")
    plot(rows, args.output.with_suffix(".png"))
    print(args.output.with_suffix(".md").read_text(encoding="utf-8"))


def part_of(args: argparse.Namespace, encoder: str, device: str) -> Part:
    """The runs with one encoder, and without."""
    changes = {} if args.iterations is None else {"iterations": args.iterations}
    options = Options(
        TABLE,
        args.budget,
        arms=(REFERENCE, ARM),
        seeds=args.seeds,
        recipe=changes,
        losses={"balance": args.balance},
        encoder=encoder,
        student=args.student,
        teacher=args.teacher,
    )
    return parts(TABLES[TABLE], options, device)[0]


def measure(
    sizes: Mapping[str, int], found: Mapping[str, Part], store: Store
) -> dict[str, dict[str, Any]]:
    """Of each encoder its size, what it costs and what it gains on every set, seed by seed."""
    firsts = {name: part.jobs for name, part in found.items()}
    reference = next(iter(firsts.values()))[REFERENCE][0]
    times: dict[str, list[float]] = {name: [] for name in firsts}
    for _ in range(ROUNDS):
        without = step_seconds(reference, store)
        for name, jobs in firsts.items():
            times[name].append(1e3 * (step_seconds(jobs[ARM][0], store) - without))
    return {
        name: {
            "parameters": sizes[name],
            "ms": statistics.median(times[name]),
            "gains": gains(part, store),
        }
        for name, part in found.items()
    }


def parameters(encoder: str) -> int:
    """Of encoder and codebook."""
    network = VQGANEncoder.from_pretrained(encoder).network
    return sum(parameter.numel() for parameter in network.parameters())


def gains(part: Part, store: Store) -> dict[str, list[float]]:
    """PSNR beyond the reference's, by set and seed."""
    block = part.block

    def psnr(jobs: Sequence[Job], images: Any) -> list[float]:
        return columns([store.scores(j, images, block.task, block.scale) for j in jobs])["psnr"]

    return {
        images.name: [
            one - other
            for one, other in zip(
                *(psnr(part.jobs[name], images) for name in (ARM, REFERENCE)), strict=True
            )
        ]
        for images in part.sets
    }


def markdown(facts: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The report."""
    sets = list(next(iter(rows.values()))["gains"])
    head = ["encoder", "parameters", "ms a step", *(f"{name} (dB)" for name in sets)]
    lines = ["# Encoders: cost and gain", "", *(f"- {k}: {v}" for k, v in facts.items()), ""]
    lines += [
        "What DCKD adds to a training step, and mean PSNR beyond plain distillation of the same "
        "seed, ± its standard error.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    for name, row in rows.items():
        cells = [name, f"{row['parameters']:,}", f"{row['ms']:.0f}"]
        for values in row["gains"].values():
            found = gain(values, [0.0] * len(values))
            assert found is not None
            spread = f" ± {found.deviation:.3f}" if len(values) > 1 else ""
            cells.append(f"{found.mean:+.3f}{spread}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot(rows: Mapping[str, Mapping[str, Any]], path: Path) -> None:
    """Gain over cost, one panel a set."""
    sets = list(next(iter(rows.values()))["gains"])
    costs = [row["ms"] for row in rows.values()]
    scale = "log" if max(costs) > WIDE * min(costs) else "linear"
    figure = Figure(figsize=(1 + 4 * len(sets), 4), layout="constrained")
    panels = figure.subplots(1, len(sets), squeeze=False)[0]
    for axis, images in zip(panels, sets, strict=True):
        axis.axhline(0, color="gray", linewidth=0.8)
        for name, row in rows.items():
            found = gain(row["gains"][images], [0.0] * len(row["gains"][images]))
            assert found is not None
            error = found.deviation if len(row["gains"][images]) > 1 else None
            axis.errorbar(row["ms"], found.mean, error, fmt="o", capsize=3, label=name)
        axis.set(xscale=scale, title=images, xlabel="ms that DCKD adds to a step")
        axis.set_ylabel("dB beyond Logits")
        axis.margins(x=0.2)
        axis.grid(alpha=0.3)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    sys.exit(main())
