"""The gradient of each of DCKD's terms at the student's output, beside the pixel losses.

    python -m benchmarks.gradients --steps 0 300 1000 --json benchmarks/results/gradients.json

Trains the small super-resolution student on the pixel losses alone and looks at the gradients on
the way, each without its weight: their norms over that of the two L1 terms together, and their
cosines with the error's own direction. DMM's two forms stand side by side, because the paper's
weight 1e-3 was tuned with the released code's doubled softmax.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import ROOT, Row
from benchmarks.tables.specs import SMALL
from dckd_losses import DCKDLoss, DMMLoss, HistoryModel, NegativeGenerator, VQGANEncoder
from examples.restoration import networks
from examples.restoration.data.crops import RandomCrops
from examples.restoration.data.datasets import pairs_from_images
from examples.restoration.data.images import photographs

TEACHER = ROOT / "examples" / "assets" / "sr_x2_teacher.safetensors"
SCALE = 2
BATCHES = 8  # looked at for each row


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
        facts = common.machine(torch.device("cpu"))
        facts |= {"command": common.command("benchmarks.gradients"), "seed": args.seed}
        common.write_json(args.json, {**facts, "rows": rows})


def crops_of(split: Literal["train", "held_out"], crop: int, count: int, seed: int) -> RandomCrops:
    """Random crops of scikit-image's photographs; `crop` is the LQ pixels a side."""
    pairs = pairs_from_images(photographs(split), SCALE)
    return RandomCrops(pairs, crop=crop, scale=SCALE, length=count, seed=seed)


class SmallTraining:
    """The small super-resolution student on the pixel losses, beside its teacher and its history.

    Args:
        batches: how many the data must have.
        seed: of weights and crops.

    Attributes:
        student: in training.
        teacher: the embedded one.
        history: follows the student.
        batches: what is left of (lq, target).
    """

    def __init__(self, batches: int, seed: int = 0) -> None:
        torch.manual_seed(seed)
        self.student, self.teacher = networks.build("tiny", SCALE), networks.load(TEACHER)
        self.history = HistoryModel(self.student, interval=SMALL.history_interval)
        parameters = self.student.parameters()
        self._optimizer = torch.optim.Adam(parameters, SMALL.lr, betas=SMALL.betas)
        size = SMALL.batch_size
        crops = crops_of("train", SMALL.crop, size * batches, seed)
        self.batches = iter(torch.utils.data.DataLoader(crops, batch_size=size))

    def train(self, steps: int) -> None:
        """Take optimizer steps."""
        for _ in range(steps):
            lq, target = next(self.batches)
            with torch.no_grad():
                taught = self.teacher(lq)
            output = self.student(lq)
            self._optimizer.zero_grad()
            (F.l1_loss(output, target) + F.l1_loss(output, taught)).backward()
            self._optimizer.step()
            self.history.step(self.student)


def measure(encoder_name: str, steps: list[int], seed: int) -> list[Row]:
    """Train to each of the steps and look at the gradients there."""
    training = SmallTraining(max(steps) + BATCHES * len(steps), seed)
    encoder = VQGANEncoder.from_pretrained(encoder_name)
    losses = {
        "dcr": DCKDLoss(
            training.student, encoder, dcr_weight=1, dmm_weight=0, balance=None,
            negatives=NegativeGenerator(training.history),
        ),
        "dmm": DMMLoss(encoder),
        "dmm released": DMMLoss(encoder, form="released"),
    }  # fmt: skip
    rows, done = [], 0
    for step in steps:
        training.train(step - done)
        done = step
        seen = [look(training, losses, *next(training.batches)) for _ in range(BATCHES)]
        for name in seen[0]:
            norms, cosines = zip(*(each[name] for each in seen), strict=True)
            values = {"norm_over_l1": norms, "cosine_with_error": cosines}
            medians = {key: statistics.median(found) for key, found in values.items()}
            rows.append({"step": step, "term": name, **medians})
    return rows


def look(
    training: SmallTraining, losses: dict[str, nn.Module], lq: Tensor, target: Tensor
) -> dict[str, tuple[float, float]]:
    """Norm over L1's, and cosine with the error, of each term's gradient at the output."""
    with torch.no_grad():
        teacher_out, output = training.teacher(lq), training.student(lq)
    output.requires_grad_()
    values = {"l1": F.l1_loss(output, target) + F.l1_loss(output, teacher_out)}
    for name, loss in losses.items():
        images = (output, teacher_out, lq) if name == "dcr" else (output, teacher_out)
        values[name] = loss(*images)
    gradients = {n: torch.autograd.grad(v, output)[0].flatten() for n, v in values.items()}
    error = (output - target).detach().flatten()
    return {
        name: (
            (g.norm() / gradients["l1"].norm()).item(),
            F.cosine_similarity(g, error, dim=0).item(),
        )
        for name, g in gradients.items()
    }


def table(rows: list[Row]) -> str:
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
