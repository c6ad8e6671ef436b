"""How strongly each of DCKD's terms pulls at the student's output, beside the pixel losses.

    python -m benchmarks.gradients --steps 0 300 1000 --json benchmarks/results/gradients.json

Trains the small super-resolution student on the pixel losses alone and looks at the gradients on
the way, each without its weight: their norms over that of the two L1 terms together, and their
cosines with the error's own direction. DMM's two forms stand side by side, because the paper's
weight 1e-3 was tuned with the released code's doubled softmax.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import provenance
from dckd_losses import DCKDLoss, DMMLoss, HistoryModel, NegativeGenerator, VQGANEncoder
from examples.restoration import backbones
from examples.restoration.data import RandomCrops, pairs_from_images, photographs
from examples.restoration.recipes import SMALL_SR

ROOT = Path(__file__).parents[1]
BATCHES = 8  # looked at for each row
TEACHER = ROOT / "examples" / "assets" / "sr_x2_teacher.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--encoder", default="compact")
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 300, 1000])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows = measure(args.encoder, sorted(args.steps), args.seed)
    print(table(rows))
    if args.json:
        facts = {
            "command": provenance.command("benchmarks.gradients"),
            **provenance.machine(torch.device("cpu")),
            "seed": args.seed,
        }
        args.json.write_text(json.dumps({**facts, "rows": rows}, indent=2) + "\n")


def measure(encoder_name: str, steps: list[int], seed: int) -> list[dict[str, float | str]]:
    """Train to each of the steps and look at the gradients there."""
    torch.manual_seed(seed)
    student, teacher = backbones.build("tiny", 2), backbones.load(TEACHER)
    encoder = VQGANEncoder.from_pretrained(encoder_name)
    history = HistoryModel(student, interval=SMALL_SR.history_interval)
    losses = {
        "dcr": DCKDLoss(
            student, encoder, dcr_weight=1, dmm_weight=0, negatives=NegativeGenerator(history)
        ),
        "dmm": DMMLoss(encoder),
        "dmm released": DMMLoss(encoder, form="released"),
    }
    optimizer = torch.optim.Adam(student.parameters(), SMALL_SR.lr, betas=SMALL_SR.betas)
    losses["dcr"].attach(optimizer)
    size, done = SMALL_SR.batch_size, 0
    crops = RandomCrops(
        pairs_from_images(photographs("train"), 2),
        crop=SMALL_SR.crop,
        scale=2,
        length=size * (max(steps) + BATCHES * len(steps)),
        seed=seed,
    )
    batches = iter(torch.utils.data.DataLoader(crops, batch_size=size))
    rows = []
    for step in steps:
        for _ in range(step - done):
            lq, target = next(batches)
            with torch.no_grad():
                taught = teacher(lq)
            output = student(lq)
            optimizer.zero_grad()
            (F.l1_loss(output, target) + F.l1_loss(output, taught)).backward()
            optimizer.step()
        done = step
        looks = [look(student, teacher, losses, *next(batches)) for _ in range(BATCHES)]
        for name in looks[0]:
            norms, cosines = zip(*(seen[name] for seen in looks), strict=True)
            rows.append(
                {
                    "step": step,
                    "term": name,
                    "norm_over_l1": statistics.median(norms),
                    "cosine_with_error": statistics.median(cosines),
                }
            )
    return rows


def look(
    student: nn.Module, teacher: nn.Module, losses: dict[str, nn.Module], lq: Tensor, target: Tensor
) -> dict[str, tuple[float, float]]:
    """Norm over L1's, and cosine with the error, of each term's gradient at the output."""
    with torch.no_grad():
        taught, output = teacher(lq), student(lq)
    output.requires_grad_()
    pixel = F.l1_loss(output, target) + F.l1_loss(output, taught)
    values = {"l1": pixel}
    for name, loss in losses.items():
        values[name] = loss(output, taught, lq) if name == "dcr" else loss(output, taught)
    gradients = {n: torch.autograd.grad(v, output)[0].flatten() for n, v in values.items()}
    error = (output - target).detach().flatten()
    return {
        name: (
            (g.norm() / gradients["l1"].norm()).item(),
            F.cosine_similarity(g, error, dim=0).item(),
        )
        for name, g in gradients.items()
    }


def table(rows: list[dict[str, float | str]]) -> str:
    """Markdown."""
    lines = [
        "| step | term, unweighted | gradient norm over L1's | cosine with the error |",
        "|---|---|---|---|",
    ]
    for row in rows:
        cells = f"{row['norm_over_l1']:.3g} | {row['cosine_with_error']:.3f}"
        lines.append(f"| {row['step']} | {row['term']} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
