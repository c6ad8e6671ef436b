"""Whether each term's gradient, averaged over batches, points where the error falls.

    DCKD_DATA=... python -m benchmarks.directions --teacher teacher.pth \\
        --teacher-network teacher.py:Network --json benchmarks/results/directions.json

Trains a student on both pixel losses and stops at some steps. There it takes the gradient of each
term by the student's weights, over some batches of training crops, and the gradient of the squared
error of photographs that no network has seen. At the output a contrastive gradient is nearly
orthogonal to the error; in the weights, noise averages out over batches, a useful part does not. A
positive cosine says that a step along the term lowers the held-out error.

Each batch's gradient at the output is scaled to one norm first, as `balance` does.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common
from benchmarks.common import Row
from benchmarks.tables.data import images
from benchmarks.tables.specs import SMALL
from dckd_losses import DMMLoss, HistoryModel, NegativeGenerator, VQGANEncoder
from dckd_losses.dcr import EPS, LEVEL_WEIGHTS, contrastive_ratio
from examples.restoration import networks
from examples.restoration.data.crops import RandomCrops
from examples.restoration.recipe import Recipe

SCALE = 2
GROUP = 8  # batches of which the smaller averages are
Batch = tuple[Tensor, Tensor]
Terms = dict[str, Tensor]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--teacher", required=True, metavar="FILE", help="its weights")
    add("--teacher-network", nargs="+", metavar="CODE", help="file.py:callable and key=value")
    add("--student", default="small", help="of the examples' networks (default: small)")
    add("--encoders", nargs="+", default=["compact"], metavar="NAME", help="names or files")
    add("--steps", type=int, nargs="+", default=[500, 2000, 5000], help="to look at")
    add("--batches", type=int, default=64, help=f"a multiple of {GROUP} (default: 64)")
    add("--budget", default="small", help="images of benchmarks.tables (default: small)")
    add("--seed", type=int, default=0)
    add("--json", type=Path)
    args = parser.parse_args()
    if args.batches < 2 * GROUP or args.batches % GROUP:
        parser.error(f"--batches: got {args.batches}; expected a multiple of {GROUP}, from 16")
    rows = measure(args)
    print(table(rows))
    if args.json:
        facts = common.machine(torch.device("cpu"))
        facts |= {"command": common.command("benchmarks.directions")}
        settings = {name: str(value) for name, value in vars(args).items() if name != "json"}
        common.write_json(args.json, {**facts, "settings": settings, "rows": rows})


def measure(args: argparse.Namespace) -> list[Row]:
    """Train to each of the steps and look at the gradients there."""
    data = images(args.budget, "sr", SCALE, ())
    recipe = SMALL.shortened(max(args.steps))
    torch.manual_seed(args.seed)
    student = networks.build(args.student, SCALE)
    teacher = networks.open_network(args.teacher, SCALE, args.teacher_network or ())
    history = HistoryModel(student, interval=recipe.history_interval)
    encoders = {Path(e).stem: VQGANEncoder.from_pretrained(e) for e in args.encoders}
    count = args.batches * len(args.steps)
    training = _batches(data.train.pairs, recipe, max(args.steps) + count, args.seed)
    held_out = _batches(data.development.pairs, recipe, count, args.seed)
    optimizer = torch.optim.Adam(student.parameters(), betas=recipe.betas)
    rows, done = [], 0
    for step in sorted(args.steps):
        for number in range(done, step):
            optimizer.param_groups[0]["lr"] = recipe.lr_at(number)
            lq, target = next(training)
            with torch.no_grad():
                taught = teacher(lq)
            out = student(lq)
            optimizer.zero_grad()
            (F.l1_loss(out, target) + F.l1_loss(out, taught)).backward()
            optimizer.step()
            history.step(student)
        done = step
        rows += look(student, teacher, history, encoders, training, held_out, args.batches, step)
    return rows


def look(
    student: nn.Module,
    teacher: nn.Module,
    history: HistoryModel,
    encoders: Mapping[str, VQGANEncoder],
    training: Iterator[Batch],
    held_out: Iterator[Batch],
    batches: int,
    step: int,
) -> list[Row]:
    """A row for each term: its averages' cosines with the held-out error's gradient."""
    negatives = {
        kind: NegativeGenerator(history, degradation=kind) for kind in ("noise", "blur", "mix")
    }

    def error(out: Tensor, lq: Tensor, target: Tensor) -> Terms:
        return {"error": F.mse_loss(out, target)}

    def terms(out: Tensor, lq: Tensor, target: Tensor) -> Terms:
        return _terms(out, teacher(lq), lq, target, encoders, negatives)

    truth = _gradients(student, held_out, batches, error, unit=False)["error"].mean(0)
    found = _gradients(student, training, batches, terms)
    pixels = (found["L1 to ground truth"] + found["L1 to teacher"]).mean(0)
    rest = truth - _along(truth, pixels)
    rows = []
    for name, gradients in found.items():
        groups = gradients.view(-1, GROUP, gradients.shape[1]).mean(1)
        of_groups = [_cosine(group, truth) for group in groups]
        rows.append(
            {
                "step": step,
                "term": name,
                "cosine_1": statistics.mean(_cosine(g, truth) for g in gradients),
                f"cosine_{GROUP}": statistics.mean(of_groups),
                f"cosine_{GROUP}_error": statistics.stdev(of_groups) / len(of_groups) ** 0.5,
                "cosine_all": _cosine(gradients.mean(0), truth),
                "cosine_beyond_pixels": _cosine(gradients.mean(0), rest),
            }
        )
    return rows


def _terms(
    out: Tensor,
    teacher_out: Tensor,
    lq: Tensor,
    target: Tensor,
    encoders: Mapping[str, VQGANEncoder],
    negatives: Mapping[str, NegativeGenerator],
) -> Terms:
    """The losses whose gradients are compared."""
    terms = {
        "L1 to ground truth": F.l1_loss(out, target),
        "L1 to teacher": F.l1_loss(out, teacher_out),
    }
    made = {kind: generator(lq) for kind, generator in negatives.items()}
    for name, encoder in encoders.items():
        for kind, others in made.items():
            found = encoder.compare(out, teacher_out, others, codes=kind == "noise")
            ratio = contrastive_ratio(found.positive, found.negative, LEVEL_WEIGHTS, EPS)
            terms[f"{name}: DCR, {kind}"] = ratio
            if kind != "noise":
                continue
            for level, (near, far) in enumerate(zip(found.positive, found.negative, strict=True)):
                terms[f"{name}: DCR, level {level + 1}"] = near / (far + EPS)
            terms[f"{name}: distance to the teacher"] = torch.stack(found.positive).sum()
            dmm = DMMLoss(encoder)
            terms[f"{name}: DMM"] = dmm.from_logits(found.student_logits, found.teacher_logits)
    return terms


def _gradients(
    student: nn.Module,
    source: Iterator[Batch],
    batches: int,
    terms: Callable[[Tensor, Tensor, Tensor], Terms],
    unit: bool = True,
) -> Terms:
    """Each term's gradients by the student's weights, a row a batch."""
    weights = list(student.parameters())
    found: dict[str, list[Tensor]] = {}
    for _ in range(batches):
        lq, target = next(source)
        out = student(lq)
        for name, value in terms(out, lq, target).items():
            (at_output,) = torch.autograd.grad(value, out, retain_graph=True)
            if unit:
                at_output = at_output / at_output.norm().clamp(min=1e-30)
            parts = torch.autograd.grad(out, weights, at_output, retain_graph=True)
            found.setdefault(name, []).append(torch.cat([part.flatten() for part in parts]))
    return {name: torch.stack(rows) for name, rows in found.items()}


def _batches(pairs: Sequence[object], recipe: Recipe, count: int, seed: int) -> Iterator[Batch]:
    crops = RandomCrops(
        [pair for pair in pairs if min(pair.lq.shape[:2]) >= recipe.crop],  # type: ignore[attr-defined]
        crop=recipe.crop,
        scale=SCALE,
        length=count * recipe.batch_size,
        seed=seed,
    )
    return iter(torch.utils.data.DataLoader(crops, batch_size=recipe.batch_size))


def _cosine(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a, b, dim=0).item()


def _along(a: Tensor, b: Tensor) -> Tensor:
    """The part of a along b."""
    return (a @ b) / (b @ b) * b


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        f"| step | term | 1 batch | {GROUP} batches | all batches | all, beyond the pixel losses |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        groups = f"{row[f'cosine_{GROUP}']:+.3f} ± {row[f'cosine_{GROUP}_error']:.3f}"
        lines.append(
            f"| {row['step']} | {row['term']} | {row['cosine_1']:+.3f} | {groups} "
            f"| {row['cosine_all']:+.3f} | {row['cosine_beyond_pixels']:+.3f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
