"""Time and memory of the loss: the released way and this library's paths, side by side.

    python -m benchmarks.speed --sizes 2x64 1x192 4x128 --json benchmarks/results/speed_cpu.json
    python -m benchmarks.speed --negatives 5 1 20 ...  # the first for all sizes, the rest for one
    python -m benchmarks.speed --students tiny swinir-student rcan-student ...  # whole steps

All ways run in one process, taking turns after each has warmed up. Times are medians with
interquartile ranges. The encoder has the architecture of the paper's f16-1024 with random weights,
the images are smooth noise. On a GPU cudnn.benchmark is on for every way (`--no-benchmark`: off),
float32 is strict float32, and each precision also runs as a CUDA graph. Beside the JSON a Markdown
table is written from it. What other methods add to a step, `benchmarks.tables table2 --plan` says.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import common, released
from benchmarks.common import Row, Way
from dckd_losses import DCKDLoss, HistoryModel, NegativeGenerator, VQGANEncoder

PRECISIONS = {"cpu": ["bfloat16"], "cuda": ["tf32", "float16", "bfloat16"]}  # beside float32
HALF = {"float16": torch.float16, "bfloat16": torch.bfloat16}
PATHS: dict[str, dict[str, Any]] = {  # settings of VQGANEncoder
    "plain": {"impl": "plain"},
    "stream": {},
    "stream, chunk 1": {"chunk": 1},
    "twopass, chunk 1": {"mode": "twopass", "chunk": 1},
}
MODES = ("default", "max-autotune-no-cudagraphs")  # of torch.compile
COMPILED = ("float16", "tf32")  # the precisions of the compiled path
SCALE, NEGATIVES = 2, 5  # of whole steps
NORMS = "dckd_losses.ops.norm.use_triton"  # where the library asks whether Triton is to do them
TEACHERS = {"tiny": "small"}  # others' are named after them


@dataclass(frozen=True, eq=False)
class Spec:
    """One way to compute the loss."""

    mode: str  # "released", or a name of this library's settings
    precision: str = "float32"  # "float32" (on a GPU without TF32), "tf32", "float16" or "bfloat16"
    settings: Mapping[str, Any] = field(default_factory=dict)  # of `VQGANEncoder`
    graph: bool = False  # as a CUDA graph
    compiled: str | None = None  # a mode of torch.compile, or None
    # on a GPU, whether Triton kernels carry out norms; otherwise torch does
    triton_norms: bool = True

    @property
    def name(self) -> str:
        """For tables."""
        parts = [self.mode, self.compiled and f"compiled ({self.compiled})"]
        return ", ".join(filter(None, [*parts, "graph" if self.graph else None]))


def main() -> None:
    args = arguments()
    rows: list[Row] = []
    torch.backends.cudnn.benchmark = args.benchmark
    for found in measured(args, torch.device(args.device)):
        print(table(found), flush=True)
        rows += found
        if args.json:
            facts = common.facts("benchmarks.speed", torch.device(args.device))
            common.write_json(args.json, {**facts, "rows": rows})
            args.json.with_suffix(".md").write_text(table(rows) + "\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--sizes", nargs="*", default=["2x64"], metavar="BxS", help="batch, pixels a side")
    add("--negatives", nargs="+", type=int, default=[5], metavar="N")
    add("--precisions", nargs="*", metavar="P", help="default: those the device is good at")
    add("--encoder", metavar="NAME", help="default: f16-1024's architecture, random weights")
    add("--compiled", action="store_true", help="last, the first size's plain path compiled")
    add("--students", nargs="*", default=[], metavar="NAME", help="for whole training steps")
    add("--step-size", default="2x96", metavar="BxS", help="of their output")
    add("--rounds", type=int, default=5, help="after one that warms up")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--benchmark", action=argparse.BooleanOptionalAction, default=True, help="cuDNN's")
    add("--json", type=Path)
    return parser.parse_args()


def measured(args: argparse.Namespace, device: torch.device) -> Iterator[list[Row]]:
    """Rows, a group at a time: what came first is there whatever happens to the rest."""
    usual_ones = PRECISIONS.get(device.type, [])
    precisions = usual_ones if args.precisions is None else args.precisions
    precisions = [precision for precision in precisions if precision != "float32"]  # always there
    usual, *others = args.negatives
    settings = [(size, usual) for size in args.sizes] + [(args.sizes[0], n) for n in others]
    for size, negatives in settings:
        bench = Bench(size, negatives, device, encoder=args.encoder)
        for specs in all_specs(device, precisions):
            yield bench.rows(specs, args.rounds)
    for name in args.students:
        yield steps(name, args.step_size, args.rounds, device)
    if args.compiled:
        bench = Bench(args.sizes[0], usual, device, encoder=args.encoder)
        for mode, precision in product(MODES, COMPILED):
            spec = Spec("plain", precision, PATHS["plain"], compiled=mode)
            yield bench.rows([spec], args.rounds)


# The loss alone


def all_specs(device: torch.device, precisions: Sequence[str]) -> list[list[Spec]]:
    """The ways that are compared: on a GPU the main ones in every precision, and as graphs."""
    ways: list[Spec] = [Spec("released"), *(Spec(name, settings=s) for name, s in PATHS.items())]
    if device.type != "cuda":
        return [[*ways, *(replace(ways[2], precision=p) for p in precisions)]]
    main = [replace(way, precision=p) for way in ways[:3] for p in ("float32", *precisions)]
    others = [*ways[3:], Spec("stream, torch's norms", triton_norms=False)]
    quick = [replace(way, precision=p) for way in others for p in precisions if p != "bfloat16"]
    return [main + quick, [replace(way, graph=True) for way in main]]


class Bench:
    """Images, weights and the true gradient, on which ways are compared.

    Args:
        size: batch x pixels a side.
        negatives: how many.
        device: where.
        truth: whether the true gradient is wanted.
        encoder: a name or file; by default the f16-1024 architecture with random weights.
    """

    def __init__(
        self,
        size: str,
        negatives: int,
        device: torch.device,
        *,
        truth: bool = True,
        encoder: str | None = None,
    ) -> None:
        self.batch, self.side = map(int, size.split("x"))
        self.device = device
        plain = VQGANEncoder.from_pretrained(encoder, impl="plain") if encoder else None
        self.network = plain.network if plain else common.random_f16()
        images = make_images(self.batch, self.side, negatives)
        self.student, self.teacher, self.negatives = (x.to(device) for x in images)
        self.network.to(device)
        self.truth = self._truth() if truth else None

    def _truth(self) -> Tensor | None:
        """The plain path's gradient in float64; None where memory does not hold it."""
        exact = VQGANEncoder(copy.deepcopy(self.network).double(), impl="plain")
        way = self._loss(exact.to(self.device, torch.float64), torch.float64)
        try:
            return common.gradient(way, self.student.double())
        except torch.OutOfMemoryError:
            return None

    def _loss(self, encoder: VQGANEncoder, dtype: torch.dtype = torch.float32) -> Way:
        teacher, negatives = self.teacher.to(dtype), self.negatives.to(dtype)
        weights = {"balance": None, **released.WEIGHTS}
        dckd = DCKDLoss(nn.Identity(), encoder, negatives=lambda lq: negatives, **weights)
        dckd.to(dtype)
        return lambda x: dckd(x, teacher, teacher)

    def way(self, spec: Spec) -> Way:
        """From the student's images to the loss."""
        if spec.mode == "released":
            tensors, half = dict(self.network.named_parameters()), HALF.get(spec.precision)

            def as_released(x: Tensor) -> Tensor:
                with torch.autocast(self.device.type, half, enabled=half is not None):
                    images = (2 * images - 1 for images in (x, self.teacher, self.negatives))
                    return released.loss(tensors, *images, **released.WEIGHTS)

            return as_released
        precision = "float32" if spec.precision == "tf32" else spec.precision
        encoder = VQGANEncoder(copy.deepcopy(self.network), precision=precision, **spec.settings)
        ours = self._loss(encoder)
        return torch.compile(ours, mode=spec.compiled) if spec.compiled else ours

    def rows(self, specs: Sequence[Spec], rounds: int) -> list[Row]:
        """One row a way, timed in turns after a warm-up; what cannot run here says why."""
        eager = [spec for spec in specs if not spec.graph]
        graphs = [[spec] for spec in specs if spec.graph]  # each holds memory of its own
        return [row for group in (eager, *graphs) for row in self._in_turns(group, rounds)]

    def _in_turns(self, specs: Sequence[Spec], rounds: int) -> list[Row]:
        ways, jobs, skipped = {spec: self.way(spec) for spec in specs}, {}, {}
        for spec, way in ways.items():
            if (spec.graph or spec.compiled) and self.device.type != "cuda":
                skipped[spec] = "needs a CUDA device"
                continue
            try:
                jobs[spec] = self.job(spec, way)
            except torch.OutOfMemoryError as error:
                skipped[spec] = str(error).partition(". ")[0]
        times = common.in_turns(jobs, rounds)
        rows = []
        for spec, way in ways.items():
            row = label(self.batch, self.side, spec.name, spec.precision, len(self.negatives))
            rows.append(row)
            if spec in skipped:
                row["skipped"] = skipped[spec]
                continue
            row |= common.summary(times[spec])
            if spec.graph:
                continue
            with self._state(spec):
                row["peak_mb"] = common.peak(jobs[spec], self.device) / 1e6
                if not spec.compiled:
                    row["saved_mb"] = common.saved(way, self.student) / 1e6
                if self.truth is not None:
                    row |= common.distance(common.gradient(way, self.student), self.truth)
        torch.cuda.empty_cache()  # nothing where there is no GPU
        return rows

    def job(self, spec: Spec, way: Way) -> Callable[[], float]:
        """What runs a way once and says how long that took; warmed up."""

        def job() -> float:
            with self._state(spec):
                return once()

        with self._state(spec):
            prepare = common.graphed if spec.graph else partial(partial, common.clock)
            once = prepare(way, self.student)
        job()
        return job

    @contextmanager
    def _state(self, spec: Spec) -> Iterator[None]:
        """What is set around forward and backward."""
        norms = nullcontext() if spec.triton_norms else patch(NORMS, return_value=False)
        with common.tf32(spec.precision == "tf32"), norms:
            yield


def label(
    batch: int, side: int, mode: str, precision: str, negatives: int | None, student: Any = None
) -> Row:
    """What a row begins with."""
    return {
        "mode": mode, "precision": precision, "student": student, "batch": batch, "size": side,
        "negatives": negatives,
    }  # fmt: skip


def make_images(batch: int, side: int, negatives: int) -> list[Tensor]:
    """Smooth images, and student, teacher and negatives at growing distances from them."""
    smooth = F.interpolate(torch.rand(batch, 3, side // 8, side // 8), (side, side), mode="bicubic")

    def near(sigma: float) -> Tensor:
        return (smooth + sigma * torch.randn_like(smooth)).clamp(0, 1)

    return [near(0.03), near(0.02), torch.stack([near(0.06) for _ in range(negatives)])]


# Whole training steps


def steps(name: str, size: str, rounds: int, device: torch.device) -> list[Row]:
    """One row a method: student, teacher, history, loss, backward and optimizer together."""
    from examples.restoration import networks  # here: the loss alone needs none of it

    batch, side = map(int, size.split("x"))
    torch.manual_seed(0)
    student = networks.build(name, SCALE)
    teacher = networks.build(TEACHERS.get(name, name.replace("student", "teacher")), SCALE)
    teacher = teacher.to(device).eval().requires_grad_(False)
    lq = torch.rand(batch, 3, side // SCALE, side // SCALE, device=device)
    target = torch.rand(batch, 3, side, side, device=device)
    jobs: dict[str, Callable[[], float]] = {}
    for method in ("released", "logits", "stream", "twopass"):
        model = copy.deepcopy(student).to(device).train()
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-4)
        distill = _distillation(method, model, optimizer, device)
        step = partial(_step, model, teacher, optimizer, distill, target)
        jobs[method] = partial(common.clock, step, lq)
        jobs[method]()
    times = common.in_turns(jobs, rounds)
    return [
        {
            **label(
                batch, side, method, "float32", None if method == "logits" else NEGATIVES, name
            ),
            **common.summary(times[method]),
            "peak_mb": common.peak(job, device) / 1e6,
        }
        for method, job in jobs.items()
    ]


def _distillation(
    method: str, student: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """What a method adds to a step; "stream" and "twopass" are DCKD's. One encoder for all."""
    network = common.random_f16(seed=1).to(device)
    if method == "logits":
        return lambda output, taught, lq: F.l1_loss(output, taught)
    if method == "released":
        tensors = dict(network.named_parameters())
        negatives = NegativeGenerator(HistoryModel(student), num_negatives=NEGATIVES).to(device)

        def loss(output: Tensor, taught: Tensor, lq: Tensor) -> Tensor:
            images = (2 * x - 1 for x in (output, taught, negatives(lq)))
            return released.loss(tensors, *images, **released.WEIGHTS)

    else:
        encoder = VQGANEncoder(network, mode=method)
        loss = DCKDLoss(student, encoder, balance=None, **released.WEIGHTS).to(device)
        loss.attach(optimizer)
    return lambda output, taught, lq: F.l1_loss(output, taught) + loss(output, taught, lq)


def _step(
    student: nn.Module,
    teacher: nn.Module,
    optimizer: torch.optim.Optimizer,
    distill: Callable[..., Tensor],
    target: Tensor,
    lq: Tensor,
) -> Tensor:
    """Up to the loss, after the update that the step before left to do."""
    optimizer.step()
    optimizer.zero_grad()
    lq = lq.detach()
    output = student(lq)
    with torch.no_grad():
        teacher_output = teacher(lq).clamp(0, 1)  # untrained, its values would be refused
    return F.l1_loss(output, target) + distill(output, teacher_output, lq)


# Reports


def table(rows: list[Row]) -> str:
    """Markdown; the ratios are those of the released way above to this row."""
    head = (
        "batch, size", "negatives", "way", "precision", "ms (IQR)", "faster", "saved MB", "less",
        "peak MB", "less", "gradient",
    )  # fmt: skip
    lines = []
    base: Row = {}
    for r in rows:
        if r["mode"] == "released" and r["precision"] not in HALF:
            base = r  # on a GPU the released way with TF32, as it runs there by default
        way = r["mode"] if r["student"] is None else f"{r['student']}: {r['mode']}"
        if "skipped" in r:
            way = f"{way} ({r['skipped']})"
        ms, spread = _number(r, "ms_median", ".0f"), _number(r, "ms_iqr", ".0f")
        lines.append([
            f"{r['batch']}x{r['size']}x{r['size']}", _number(r, "negatives", "d"),
            way, r["precision"], f"{ms} ({spread})" if spread else ms,
            _less(base, r, "ms_median", 2),
            _number(r, "saved_mb", ".1f"), _less(base, r, "saved_mb"),
            _number(r, "peak_mb", ".0f"), _less(base, r, "peak_mb"),
            _number(r, "grad_rel_l2", ".0e"),
        ])  # fmt: skip
    return "\n".join(common.grid(head, lines))


def _number(row: Row, key: str, form: str) -> str:
    return "" if row.get(key) is None else format(row[key], form)


def _less(base: Row, row: Row, key: str, digits: int = 1) -> str:
    known = base.get(key) is not None and row.get(key) is not None
    return f"{base[key] / row[key]:.{digits}f}" if known else ""


if __name__ == "__main__":
    main()
