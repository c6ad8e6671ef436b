"""How far the gradient at the student's output is from float64's, for each precision.

    python -m benchmarks.precision --json benchmarks/results/precision_cpu.json

A step as in training: outputs of the small super-resolution teacher and of a student on its way to
it, negatives from the student's history, on crops of photographs that neither was trained on. The
"closer" student has only 30 % of the way to the teacher left, where rounding weighs more. The
encoders are the embedded `compact` and the architecture of the paper's f16-1024 with random
weights. Also written: a Markdown table beside the JSON.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import provenance
from benchmarks.gradients import TEACHER
from benchmarks.speed import F16
from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator, VQGANEncoder
from dckd_losses.network import VQGANNetwork
from examples.restoration import backbones
from examples.restoration.data import RandomCrops, pairs_from_images, photographs
from examples.restoration.recipes import SMALL_SR

ENCODERS = ("compact", "f16-random")
SCALE = 2  # of the super-resolution, which is the embedded teacher's
STEPS = 325  # the history, updated every 50, is half an interval behind the student then
LEFT = {"trained": 1.0, "closer": 0.3}  # of the way from the student to the teacher
TERMS: dict[str, dict[str, float]] = {  # with DCKDLoss's own weights
    "DCR": {"dmm_weight": 0.0},
    "DMM": {"dcr_weight": 0.0},
    "both": {},
}
WAYS = {
    "float32, plain": {"impl": "plain"},
    "float32": {},
    "float16": {"precision": "float16"},
    "bfloat16": {"precision": "bfloat16"},
}
Row = dict[str, object]


class Step(NamedTuple):
    """Images of one training step, (1, 3, H, W), and negatives, (N, 1, 3, H, W)."""

    student: Tensor
    teacher: Tensor
    negatives: Tensor


def main() -> None:
    args = arguments()
    torch.backends.cudnn.deterministic = True
    torch.manual_seed(0)
    steps = make_steps(*train(args.steps), args.crops, args.side)
    rows: list[Row] = []
    for name in args.encoders:
        rows += measure(name, steps, torch.device(args.device))
        print(table(rows), flush=True)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        content = {**facts(args), "apart": [apart(step) for step in steps], "rows": rows}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
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


def train(steps: int) -> tuple[nn.Module, nn.Module, HistoryModel]:
    """A student trained on the pixel losses, its teacher and its history."""
    student, teacher = backbones.build("tiny", SCALE), backbones.load(TEACHER)
    history = HistoryModel(student, interval=SMALL_SR.history_interval)
    optimizer = torch.optim.Adam(student.parameters(), SMALL_SR.lr, betas=SMALL_SR.betas)
    size = SMALL_SR.batch_size
    crops = RandomCrops(
        pairs_from_images(photographs("train"), SCALE),
        crop=SMALL_SR.crop,
        scale=SCALE,
        length=size * steps,
        seed=0,
    )
    for lq, target in torch.utils.data.DataLoader(crops, batch_size=size):
        with torch.no_grad():
            taught = teacher(lq)
        output = student(lq)
        optimizer.zero_grad()
        (F.l1_loss(output, target) + F.l1_loss(output, taught)).backward()
        optimizer.step()
        history.step(student)
    return student, teacher, history


@torch.no_grad()
def make_steps(
    student: nn.Module, teacher: nn.Module, history: HistoryModel, crops: int, side: int
) -> list[Step]:
    """One step for each crop, made in float32 on the CPU, so that all devices see the same."""
    negatives = NegativeGenerator(history)
    data = RandomCrops(
        pairs_from_images(photographs("held_out"), SCALE),
        crop=side // SCALE,
        scale=SCALE,
        length=crops,
        seed=0,
    )
    lqs = [lq[None] for lq, _ in data]
    return [Step(student(lq), teacher(lq), negatives(lq)) for lq in lqs]


def measure(name: str, steps: list[Step], device: torch.device) -> list[Row]:
    """One row for each student, term and way with this encoder."""
    exact = VQGANEncoder(build(name), impl="plain").to(device, torch.float64)
    encoders = {
        way: VQGANEncoder(build(name), **settings).to(device)  # type: ignore[arg-type]
        for way, settings in WAYS.items()
    }
    rows: list[Row] = []
    for student, left in LEFT.items():
        moved = [s._replace(student=s.teacher.lerp(s.student, left)) for s in steps]
        for term in TERMS:
            truths = [gradient(exact, step, term, torch.float64) for step in moved]
            for way, encoder in encoders.items():
                seen = [gradient(encoder, step, term, torch.float32) for step in moved]
                labels = {"encoder": name, "student": student, "term": term, "precision": way}
                rows.append({**labels, **distances(seen, truths)})
    return rows


def build(name: str) -> VQGANNetwork:
    """A new network by its name in `ENCODERS`."""
    if name == "compact":
        return VQGANEncoder.from_pretrained(name, impl="plain").network
    torch.manual_seed(0)
    return VQGANNetwork(F16).requires_grad_(False).eval()


def gradient(
    encoder: VQGANEncoder, step: Step, term: str, dtype: torch.dtype
) -> tuple[float, Tensor]:
    """The loss, and its gradient at the student's output as a float64 vector on the CPU."""
    device = encoder.network.quant_conv.weight.device
    student, teacher, negatives = (x.to(device, dtype) for x in step)
    dckd = DCKDLoss(nn.Identity(), encoder, negatives=lambda lq: negatives, **TERMS[term])
    loss = dckd.to(dtype)(student.requires_grad_(), teacher, teacher)
    (grad,) = torch.autograd.grad(loss, student)
    return loss.item(), grad.flatten().cpu().double()


def apart(step: Step) -> float:
    """Root mean square between student and teacher, in levels of 8 bits."""
    return 255 * (step.student - step.teacher).square().mean().sqrt().item()


def distances(seen: list[tuple[float, Tensor]], truths: list[tuple[float, Tensor]]) -> Row:
    """Every distance to float64: its median over the crops, its worst, and cosines one by one."""
    found: dict[str, list[float]] = {"cosine": [], "rel_l2": [], "loss_rel": []}
    for (loss, grad), (true_loss, true_grad) in zip(seen, truths, strict=True):
        found["cosine"].append(F.cosine_similarity(grad, true_grad, dim=0).item())
        found["rel_l2"].append(((grad - true_grad).norm() / true_grad.norm()).item())
        found["loss_rel"].append(abs(loss / true_loss - 1))
    row: Row = {"cosines": found["cosine"]}
    for key, values in found.items():
        row[key] = statistics.median(values)
        row[f"{key}_worst"] = min(values) if key == "cosine" else max(values)
    return row


def table(rows: list[Row]) -> str:
    """Markdown; each cell is the median over the crops, and the worst."""
    lines = [
        "| encoder | student | term | precision | cosine | relative L2 | relative error of loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        lines.append(
            f"| {r['encoder']} | {r['student']} | {r['term']} | {r['precision']} | "
            f"{r['cosine']:.4f} ({r['cosine_worst']:.4f}) | "
            f"{r['rel_l2']:.1e} ({r['rel_l2_worst']:.1e}) | "
            f"{r['loss_rel']:.0e} ({r['loss_rel_worst']:.0e}) |"
        )
    return "\n".join(lines)


def facts(args: argparse.Namespace) -> dict[str, object]:
    """What the numbers were measured with."""
    device = torch.device(args.device)
    return {
        "command": provenance.command("benchmarks.precision"),
        **provenance.machine(device),
        "tf32": device.type == "cuda" and torch.backends.cudnn.allow_tf32,
    }


if __name__ == "__main__":
    main()
