"""How far the gradient at the student's output is from float64's, for each precision.

    python -m benchmarks.precision --json benchmarks/results/precision_cpu.json

A step as in training: outputs of the small super-resolution teacher and of a student on its way to
it, negatives from the student's history, on crops of photographs that neither was trained on. The
"closer" student has only 30 % of the way to the teacher left, where rounding weighs more. The
encoders are the embedded `compact` and the architecture of the paper's f16-1024 with random
weights. On a GPU float32 is strict float32, and TF32 has rows of its own. Also written: a Markdown
table beside the JSON.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import Row
from benchmarks.gradients import SCALE, SmallTraining, batches_of
from dckd_losses import DCKDLoss, NegativeGenerator, VQGANEncoder
from examples.restoration import networks
from examples.restoration.data.crops import RandomCrops
from examples.restoration.data.datasets import pairs_from_images
from examples.restoration.data.images import photographs

ENCODERS = ("compact", "f16-random")
STEPS = 325  # the history, updated every 50, is half an interval behind the student then
LEFT = {"trained": 1.0, "closer": 0.3}  # of the way from the student to the teacher
TERMS: dict[str, dict[str, float]] = {  # with DCKDLoss's own weights
    "DCR": {"dmm_weight": 0.0},
    "DMM": {"dcr_weight": 0.0},
    "both": {},
}
WAYS: dict[str, dict[str, Any]] = {
    "float32, plain": {"impl": "plain"},
    "float32": {},
    "tf32": {},
    "float16": {"precision": "float16"},
    "bfloat16": {"precision": "bfloat16"},
}


class Step(NamedTuple):
    """Images of one training step, (1, 3, H, W), and negatives, (N, 1, 3, H, W)."""

    student: Tensor
    teacher: Tensor
    negatives: Tensor


def main() -> None:
    args = arguments()
    torch.backends.cudnn.deterministic = True
    device, rows = torch.device(args.device), []
    steps = make_steps(args.steps, args.crops, args.side)
    for name in args.encoders:
        rows += measure(name, steps, device)
        print(table(rows), flush=True)
        if args.json:  # what came first is there whatever happens to the rest
            facts = common.facts("benchmarks.precision", device)
            common.write_json(args.json, {**facts, "apart": list(map(apart, steps)), "rows": rows})
            args.json.with_suffix(".md").write_text(table(rows) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoders", nargs="+", choices=ENCODERS, default=ENCODERS)
    parser.add_argument("--crops", type=int, default=6)
    parser.add_argument("--side", type=int, default=96, help="pixels of a crop at the output")
    parser.add_argument("--steps", type=int, default=STEPS, help="that the student was trained")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def make_steps(steps: int, crops: int, side: int) -> list[Step]:
    """One step for each crop, made in float32 on the CPU, so that all devices see the same."""
    pairs, held_out = (pairs_from_images(photographs(s), SCALE) for s in ("train", "held_out"))
    torch.manual_seed(0)
    training = SmallTraining(batches_of(pairs, steps, seed=0), networks.build("tiny", SCALE))
    training.train(steps)
    negatives = NegativeGenerator(training.history)
    seen = RandomCrops(held_out, crop=side // SCALE, scale=SCALE, length=crops, seed=0)
    lqs = [lq[None] for lq, _ in seen]
    with torch.no_grad():
        return [Step(training.student(lq), training.teacher(lq), negatives(lq)) for lq in lqs]


def measure(name: str, steps: list[Step], device: torch.device) -> list[Row]:
    """One row for each student, term and way with the encoder of this name."""
    ways = {way: s for way, s in WAYS.items() if way != "tf32" or device.type == "cuda"}
    exact = build(name, impl="plain").to(device, torch.float64)
    encoders = {way: build(name, **settings).to(device) for way, settings in ways.items()}
    rows: list[Row] = []
    for (student, left), term in product(LEFT.items(), TERMS):
        moved = [s._replace(student=s.teacher.lerp(s.student, left)) for s in steps]
        truths = [gradient(exact, step, term, torch.float64) for step in moved]
        for way, encoder in encoders.items():
            with common.tf32(way == "tf32"):
                seen = [gradient(encoder, step, term, torch.float32) for step in moved]
            labels = {"encoder": name, "student": student, "term": term, "precision": way}
            rows.append({**labels, **distances(seen, truths)})
    return rows


def build(name: str, **settings: Any) -> VQGANEncoder:
    """An encoder by its name in `ENCODERS`."""
    if name == "compact":
        return VQGANEncoder.from_pretrained(name, **settings)
    return VQGANEncoder(common.random_f16(), **settings)


def gradient(
    encoder: VQGANEncoder, step: Step, term: str, dtype: torch.dtype
) -> tuple[float, Tensor]:
    """The loss, and its gradient at the student's output as a float64 vector on the CPU."""
    device = next(encoder.network.parameters()).device
    student, teacher, negatives = (x.to(device, dtype) for x in step)
    dckd = DCKDLoss(
        nn.Identity(), encoder, balance=None, negatives=lambda lq: negatives, **TERMS[term]
    )
    loss = dckd.to(dtype)(student.requires_grad_(), teacher, teacher)
    (grad,) = torch.autograd.grad(loss, student)
    return loss.item(), grad.flatten().cpu().double()


def apart(step: Step) -> float:
    """Root mean square between student and teacher, in levels of 8 bits."""
    return 255 * (step.student - step.teacher).square().mean().sqrt().item()


def distances(seen: Sequence[tuple[float, Tensor]], truths: Sequence[tuple[float, Tensor]]) -> Row:
    """Every distance to float64: its median over the crops, its worst, and cosines one by one."""
    pairs = list(zip(seen, truths, strict=True))
    found = [common.distance(grad, true) for (_, grad), (_, true) in pairs]
    values = {
        "cosine": [each["grad_cos"] for each in found],
        "rel_l2": [each["grad_rel_l2"] for each in found],
        "loss_rel": [abs(loss / true - 1) for (loss, _), (true, _) in pairs],
    }
    row: Row = {"cosines": values["cosine"]}
    for key, each in values.items():
        row[key] = statistics.median(each)
        row[f"{key}_worst"] = min(each) if key == "cosine" else max(each)
    return row


def table(rows: list[Row]) -> str:
    """Markdown; each cell is the median over the crops, and the worst."""
    labels = ("encoder", "student", "term", "precision")
    cells = [
        (
            *(row[label] for label in labels),
            f"{row['cosine']:.4f} ({row['cosine_worst']:.4f})",
            f"{row['rel_l2']:.1e} ({row['rel_l2_worst']:.1e})",
            f"{row['loss_rel']:.0e} ({row['loss_rel_worst']:.0e})",
        )
        for row in rows
    ]
    return "\n".join(
        common.grid((*labels, "cosine", "relative L2", "relative error of loss"), cells)
    )


if __name__ == "__main__":
    main()
