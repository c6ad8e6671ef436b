"""The gradients of DCKD's terms beside the pixel losses': how large they are, where they point.

    python -m benchmarks.gradients --steps 0 300 1000 --json benchmarks/results/gradients.json
    DCKD_DATA=... python -m benchmarks.gradients --budget small --student small --batches 64 \\
        --steps 500 2000 5000 --teacher teacher.pth --teacher-network teacher.py:Network

Trains a super-resolution student on the two L1 losses alone and stops at some steps. There it looks
at each term, without its weight, over some batches of training crops:

- at the student's output: the gradient's norm over that of the two L1 terms together, and its
  cosine with the error's own direction, medians over the batches. DMM's two forms stand side by
  side, because the paper's weight 1e-3 was tuned with the released code's doubled softmax.
- in the student's weights: the cosine with the gradient of the squared error of photographs that no
  network has seen, of one batch alone and of the mean over all. Noise averages out over batches, a
  useful part does not. A positive cosine says that a step along the term lowers that error; the
  last column leaves out what lies along the two L1 terms. What `l2` has there, the squared errors
  to both targets, comes without an encoder. Each batch's gradient at the output is scaled to one
  norm first, as `balance` does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from operator import truediv
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import ROOT, Row
from benchmarks.tables.data import images
from benchmarks.tables.specs import SMALL
from dckd_losses import DMMLoss, HistoryModel, NegativeGenerator, VQGANEncoder
from dckd_losses.dcr import EPS, LEVEL_WEIGHTS, contrastive_ratio
from examples.restoration import networks
from examples.restoration.data.crops import RandomCrops
from examples.restoration.data.datasets import Pair, pairs_from_images
from examples.restoration.data.images import photographs
from examples.restoration.recipe import Decay, Recipe

TEACHER = ROOT / "examples" / "assets" / "sr_x2_teacher.safetensors"
SCALE = 2
CONSTANT = replace(SMALL, schedule=Decay(steps=(), factor=1.0))
Batches: TypeAlias = Iterator[Sequence[Tensor]]  # of (lq, target)
# from student_out, teacher_out, lq and target to losses by name
Terms: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Mapping[str, Tensor]]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--encoders", nargs="+", default=["compact"], metavar="NAME", help="names or files")
    add("--steps", type=int, nargs="+", default=[0, 300, 1000], help="to look at")
    add("--batches", type=int, default=8, help="to look at there, from 2 (default: 8)")
    add(
        "--budget",
        choices=["small", "smoke"],
        help="images and schedule of benchmarks.tables; default: photographs",
    )
    add("--student", default="tiny", help="of the examples' networks (default: tiny)")
    add("--teacher", default=str(TEACHER), metavar="FILE", help="its weights")
    add("--teacher-network", nargs="+", default=(), metavar="CODE", help="file.py:callable")
    add("--seed", type=int, default=0)
    add("--json", type=Path)
    args = parser.parse_args(argv)
    if args.batches < 2 or min(args.steps) < 0:
        parser.error("expected --batches from 2 and --steps from 0")
    rows = measure(args)
    print(table(rows))
    if args.json:
        facts = common.facts("benchmarks.gradients", torch.device("cpu"))
        common.write_json(args.json, {**facts, "seed": args.seed, "rows": rows})


def batches_of(pairs: Sequence[Pair], count: int, seed: int) -> Batches:
    """Random crops of the images that are large enough."""
    large = [pair for pair in pairs if min(pair.lq.shape[:2]) >= SMALL.crop]
    crops = RandomCrops(
        large, crop=SMALL.crop, scale=SCALE, length=count * SMALL.batch_size, seed=seed
    )
    return iter(torch.utils.data.DataLoader(crops, batch_size=SMALL.batch_size))


class SmallTraining:
    """A super-resolution student on the pixel losses, beside its teacher and its history.

    Args:
        batches: as many as will be taken.
        student: in training.
        teacher: by default the embedded one.
        recipe: of the learning rate and the history's interval.

    Attributes:
        history: follows the student.
    """

    def __init__(
        self,
        batches: Batches,
        student: nn.Module,
        teacher: nn.Module | None = None,
        recipe: Recipe = CONSTANT,
    ) -> None:
        self.batches, self.student, self.recipe = batches, student, recipe
        self.teacher = teacher or networks.load(TEACHER)
        self.history = HistoryModel(student, interval=recipe.history_interval)
        self._optimizer = torch.optim.Adam(student.parameters(), betas=recipe.betas)

    def train(self, until: int) -> None:
        """Take optimizer steps, so many in all."""
        for number in range(int(self.history.iteration), until):
            self._optimizer.param_groups[0]["lr"] = self.recipe.lr_at(number)
            lq, target = next(self.batches)
            with torch.no_grad():
                teacher_out = self.teacher(lq)
            student_out = self.student(lq)
            self._optimizer.zero_grad()
            (F.l1_loss(student_out, target) + F.l1_loss(student_out, teacher_out)).backward()
            self._optimizer.step()
            self.history.step(self.student)


def measure(args: argparse.Namespace) -> list[Row]:
    """Train to each of the steps and look at the gradients there."""
    if args.budget:
        found = images(args.budget, "sr", SCALE, ())
        pairs, held_out = found.train.pairs, found.development.pairs
        recipe = SMALL.shortened(max(args.steps))
    else:
        pairs, held_out = (pairs_from_images(photographs(s), SCALE) for s in ("train", "held_out"))
        recipe = CONSTANT
    torch.manual_seed(args.seed)
    student = networks.build(args.student, SCALE)
    teacher = networks.open_network(args.teacher, SCALE, args.teacher_network)
    count = args.batches * len(args.steps)
    batches = batches_of(pairs, max(args.steps) + count, args.seed)
    training = SmallTraining(batches, student, teacher, recipe)
    unseen = batches_of(held_out, count, args.seed)
    encoders = {Path(e).stem: VQGANEncoder.from_pretrained(e) for e in args.encoders}
    terms, rows = terms_of(encoders, training.history), []
    for step in sorted(args.steps):
        training.train(step)
        rows += [{"step": step, **row} for row in look(training, terms, unseen, args.batches)]
    return rows


def terms_of(encoders: Mapping[str, VQGANEncoder], history: HistoryModel) -> Terms:
    """The losses whose gradients are compared, named after the encoders where these are several."""
    negatives = {
        kind: NegativeGenerator(history, degradation=kind) for kind in ("noise", "blur", "mix")
    }

    def terms(out: Tensor, teacher_out: Tensor, lq: Tensor, target: Tensor) -> Mapping[str, Tensor]:
        to_target, to_teacher = F.l1_loss(out, target), F.l1_loss(out, teacher_out)
        values = {
            "l1": to_target + to_teacher,
            "l1 to target": to_target,
            "l1 to teacher": to_teacher,
            "l2": F.mse_loss(out, target) + F.mse_loss(out, teacher_out),
        }
        made = {kind: generator(lq) for kind, generator in negatives.items()}
        for name, encoder in encoders.items():
            of = f"{name}: " if len(encoders) > 1 else ""
            for kind, others in made.items():
                usual = kind == "noise"
                found = encoder.compare(out, teacher_out, others, codes=usual)
                near, far = found.positive, found.negative
                dcr = f"{of}dcr" if usual else f"{of}dcr, {kind}"
                values[dcr] = contrastive_ratio(near, far, LEVEL_WEIGHTS, EPS)
                if not usual:
                    continue
                for level, (positive, negative) in enumerate(zip(near, far, strict=True)):
                    values[f"{of}dcr, level {level}"] = positive / (negative + EPS)
                values[f"{of}distance to the teacher"] = torch.stack(near).sum()
                for title, form in (("dmm", "cross_entropy"), ("dmm released", "released")):
                    logits = found.student_logits, found.teacher_logits
                    values[f"{of}{title}"] = DMMLoss(encoder, form=form).from_logits(*logits)
        return values

    return terms


def look(training: SmallTraining, terms: Terms, unseen: Batches, batches: int) -> list[Row]:
    """A row for each term."""
    weights = list(training.student.parameters())

    def by_weights(out: Tensor, at_output: Tensor) -> Tensor:
        parts = torch.autograd.grad(out, weights, at_output, retain_graph=True)
        return torch.cat([part.flatten() for part in parts])

    def of_the_error(lq: Tensor, target: Tensor) -> Tensor:
        out = training.student(lq)
        return by_weights(out, (out - target).detach())

    truth = torch.stack([of_the_error(*next(unseen)) for _ in range(batches)]).mean(0)
    found: dict[str, list[tuple[float, float, Tensor]]] = {}
    for _ in range(batches):
        lq, target = next(training.batches)
        out = training.student(lq)
        with torch.no_grad():
            teacher_out = training.teacher(lq)
        for name, value in terms(out, teacher_out, lq, target).items():
            (gradient,) = torch.autograd.grad(value, out, retain_graph=True)
            norm, towards_error = gradient.norm(), cosine(gradient, (out - target).detach())
            in_weights = by_weights(out, gradient / norm.clamp(min=1e-30))
            found.setdefault(name, []).append((norm.item(), towards_error, in_weights))
    l1_norms, _, l1_gradients = zip(*found["l1"], strict=True)
    l1 = torch.stack(l1_gradients).mean(0)
    beyond = truth - (truth @ l1) / (l1 @ l1) * l1
    rows = []
    for name, seen in found.items():
        norms, cosines, gradients = zip(*seen, strict=True)
        total = torch.stack(gradients).sum(0)
        without = [cosine(total - gradient, truth) for gradient in gradients]  # the jackknife's
        rows.append(
            {
                "term": name,
                "norm_over_l1": statistics.median(map(truediv, norms, l1_norms)),
                "cosine_with_error": statistics.median(cosines),
                "weights_cosine_one": statistics.mean(cosine(g, truth) for g in gradients),
                "weights_cosine": cosine(total, truth),
                "weights_cosine_error": statistics.pstdev(without) * (batches - 1) ** 0.5,
                "weights_cosine_beyond_l1": cosine(total, beyond),
            }
        )
    return rows


def cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def table(rows: list[Row]) -> str:
    """Markdown."""
    head = (
        "step", "term, unweighted", "gradient norm over L1's", "cosine with the error",
        "in the weights: one batch", "all batches", "beyond L1",
    )  # fmt: skip
    rows_of_text = [
        (
            row["step"], row["term"], f"{row['norm_over_l1']:.3g}",
            f"{row['cosine_with_error']:.3f}", f"{row['weights_cosine_one']:+.3f}",
            f"{row['weights_cosine']:+.3f} ± {row['weights_cosine_error']:.3f}",
            f"{row['weights_cosine_beyond_l1']:+.3f}",
        )
        for row in rows
    ]  # fmt: skip
    return "\n".join(common.grid(head, rows_of_text))


if __name__ == "__main__":
    main()
